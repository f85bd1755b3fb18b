import hashlib
import json
from pathlib import Path

import pytest

from qlocal.errors import FormatError
from quantize import state
from quantize.cli import main
from quantize.source_hashes import SourceHashes
from tests import tiny


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("whole_bytes", [0, 4 << 30], ids=["while it is read", "before, as it is small"])
def test_report_holds_the_hash_of_every_source_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_bytes: int
) -> None:
    monkeypatch.setattr(state, "WHOLE_HASH_BYTES", whole_bytes)
    source = tiny.write_checkpoint(tmp_path / "m", shards=3)
    assert main([str(source), "--format", "awq", "--rtn", "--no-verify", "--out", str(tmp_path / "out")]) == 0
    hashes = json.loads((tmp_path / "out" / "quantization_report.json").read_text())["source_sha256"]
    assert {name for name in hashes if name.endswith(".safetensors")} == {p.name for p in source.glob("*.safetensors")}
    assert "tokenizer.json" in hashes and "config.json" in hashes
    assert hashes == {name: sha256(source / name) for name in hashes}


def test_what_is_known_is_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"new")
    hashes = SourceHashes([tmp_path / "gone", tmp_path / "new"], {"gone": "abc", "of another source": "x"})
    assert hashes.finish() == {"gone": "abc", "new": sha256(tmp_path / "new")}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    hashes = SourceHashes([tmp_path / "gone"], {})
    with pytest.raises(FormatError, match=r"gone: cannot be read"):
        hashes.finish()


def test_closing_stops_in_the_middle_of_a_file(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(40 << 30)  # holes: nothing is written, but reading all would take seconds
    hashes = SourceHashes([tmp_path / "large"], {})
    hashes.begin([tmp_path / "large"])
    hashes.close()
    assert hashes.done() == {}
