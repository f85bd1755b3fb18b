from pathlib import Path

import pytest

from qlocal.errors import UsageError
from quantize.calibration.documents import joined_text, load_documents


def test_shipped_set_holds_texts_and_conversations() -> None:
    documents = load_documents(())
    assert sum(d.text is not None for d in documents) > 20
    assert sum(d.messages is not None for d in documents) > 20
    assert not any("=== next document ===" in (d.text or "") for d in documents)


def test_own_files_are_split_into_documents_and_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n=== next document ===\ntwo")
    (tmp_path / "b.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n\n')
    documents = load_documents((tmp_path / "a.txt", tmp_path / "b.jsonl"))
    assert [d.text for d in documents[:2]] == ["one", "two"]
    assert documents[2].messages == [{"role": "user", "content": "Hi"}]


def test_a_line_separator_inside_a_message_ends_no_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "one\u2028two"}]}\r\n')
    assert load_documents((tmp_path / "a.jsonl",))[0].messages == [{"role": "user", "content": "one\u2028two"}]


def test_raw_files_are_joined_as_they_are(tmp_path: Path) -> None:
    for name, text in (("a.txt", "one "), ("b.txt", "two\n")):
        (tmp_path / name).write_text(text)
    assert joined_text((tmp_path / "a.txt", tmp_path / "b.txt")) == "one two\n"


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.txt: cannot be read"):
        load_documents((tmp_path / "absent.txt",))
