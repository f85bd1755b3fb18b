"""What is being written: pastes and files as chips, files completed, an editor of one's own, the price before Enter."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.events import Paste
from textual.widgets import TextArea

from qlocal.chat.attachments import Attachments, is_long
from qlocal.chat.documents import MAX_FILE_BYTES, read_document
from qlocal.chat.events import TokenCount
from qlocal.chat.features.drafts import Drafts
from qlocal.chat.screens.text import TextScreen
from qlocal.chat.words import price
from qlocal.errors import QLocalError
from tests.chat.driving import Chat, run_chat
from tests.chat.scripted import ScriptedLink, answer_of
from tests.chat.test_commands import suggestions
from tests.guard.made_documents import pdf_of

LONG = "one\ntwo\nthree"


async def paste(chat: Chat, text: str) -> None:
    chat.app.post_message(Paste(text))
    await chat.pilot.pause()


def test_a_long_paste_is_a_chip_with_its_tokens_that_is_expanded_when_sent(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.pilot.press(*"see ")
        await paste(chat, LONG.replace("\n", "\r\n"))
        await chat.until(lambda: chat.prompt.text == "see [Pasted text #1 +3 lines, 1 tokens]")
        await chat.pilot.press("enter")
        await chat.until_shown("Yes.")
        assert chat.link.requests == [[{"role": "user", "content": f"see {LONG}"}]]
        await chat.until_idle()
        await chat.pilot.press("up")
        assert chat.prompt.text.startswith("see [Pasted text #1")
        assert chat.prompt.sent_text == f"see {LONG}"

    run_chat(tmp_path, ScriptedLink([answer_of("Yes.")], counted=TokenCount(50, 4096)), use)


def test_a_short_paste_is_text_and_never_sends(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await paste(chat, "one\ntwo")
        assert chat.prompt.text == "one\ntwo" and chat.link.requests == []

    run_chat(tmp_path, ScriptedLink([]), use)
    assert not is_long("x" * 800) and is_long("x" * 801) and is_long("a\nb\nc")


@pytest.mark.parametrize(("keys", "left"), [(["backspace"], "ab"), (["left", "delete"], "ab"), (["left", "x"], "ax")])
def test_a_chip_is_one_unit_for_the_cursor_and_for_deleting(tmp_path: Path, keys: list[str], left: str) -> None:
    async def use(chat: Chat) -> None:
        await chat.pilot.press("a")
        await paste(chat, LONG)
        if "x" not in keys:
            await chat.pilot.press("b", "left")
        await chat.pilot.press(*keys)
        chip = "[Pasted text #1 +3 lines]"
        assert chat.prompt.text == (left if "x" not in keys else left + chip)
        if "x" in keys:
            chat.prompt.move_cursor((0, 6))  # a click into the middle
            await chat.pilot.pause()
            assert chat.prompt.cursor_location == (0, 2 + len(chip))

    run_chat(tmp_path, ScriptedLink([]), use)


def test_keys_that_come_at_once_act_in_their_order(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        chat.press_at_once(*"abc", "backspace", "d", "left", "e", "home", "f", "end", "ctrl+w", "g", "backspace", *"hi")
        await chat.until(lambda: chat.prompt.text.endswith("i"))
        assert chat.prompt.text == "hi"
        chat.press_at_once("home", "x", "delete", "y", "enter", "z", "backspace", "o", "k")
        await chat.until(lambda: chat.prompt.text.endswith("k"))
        assert chat.prompt.text == "ok"
        chat.press_at_once("enter", "a", "enter", "/", "x", "enter", "b")
        await chat.until(lambda: chat.prompt.text.endswith("b") and len(chat.link.requests) == 3)
        assert chat.prompt.text == "/xb", "a command that is none stays, and what was typed behind it"
        assert [request[-1]["content"] for request in chat.link.requests] == ["xyi", "ok", "a"]

    run_chat(tmp_path, ScriptedLink([answer_of("Yes."), answer_of("So."), answer_of("No.")]), use)


def test_what_a_chip_stands_for_can_be_looked_at(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.pilot.press("alt+v")
        assert "no paste or file" in chat.notice
        await paste(chat, LONG)
        await chat.pilot.press("alt+v")
        await chat.until(lambda: isinstance(chat.app.screen, TextScreen))
        assert chat.app.screen.query_one(TextArea).text == LONG
        await chat.pilot.press("escape")
        await chat.until(lambda: chat.app.screen is chat.app.chat)

    run_chat(tmp_path, ScriptedLink([]), use, size=(60, 15))


@pytest.mark.parametrize("command", ["file", "export", "import-file", "schema"])
def test_a_path_that_is_none_is_said_and_ends_nothing(tmp_path: Path, command: str) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("hello")
        await chat.until_shown("said")
        await chat.until_idle()
        chat.app.chat.do(command.replace("-", "_"), "a\x00b.md")
        await chat.until(lambda: "is no path" in chat.notice)
        chat.app.chat.do(command.replace("-", "_"), "~nobody-here/b.md")
        await chat.until(lambda: "nobody" in chat.notice and "zero byte" not in chat.notice)

    run_chat(tmp_path, ScriptedLink([answer_of("said")]), use)


def test_files_are_completed_and_taken_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "bees.md").write_text("# Bees\n```\nhum\n```\n")
    (folder / "north.txt").write_text("n")
    (folder / ".hidden").write_text("h")
    monkeypatch.chdir(folder)

    async def use(chat: Chat) -> None:
        await chat.pilot.press("r", "e", "space", "at")
        assert suggestions(chat) == ["notes/", "north.txt"]
        await chat.pilot.press(*"no", "tab")
        assert chat.prompt.text == "re @notes/" and suggestions(chat) == ["notes/bees.md"]
        await chat.pilot.press("enter")
        await chat.until(lambda: "[File #1 notes/bees.md +5 lines" in chat.prompt.text)
        assert chat.prompt.sent_text == "re notes/bees.md:\n````md\n# Bees\n```\nhum\n```\n````"
        chat.prompt.forget()
        await chat.pilot.press("at", "full_stop")
        assert suggestions(chat) == [".hidden"]

    run_chat(tmp_path, ScriptedLink([]), use)


def test_a_file_that_cannot_be_sent_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\x00\x01")

    async def use(chat: Chat) -> None:
        await chat.say(f"/file {tmp_path}/x.bin")
        await chat.until(lambda: "binary" in chat.notice)
        assert chat.prompt.text == ""

    run_chat(tmp_path, ScriptedLink([]), use)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"a\0b", "is binary"),
        ("a.txt", b"\xff\xfe\x80", "no text in UTF-8"),
        ("a.txt", b"  \n", "no text in it"),
        ("a.pdf", b"%PDF-1.4 nonsense", "is no PDF that can be read"),
        ("a.docx", b"PK nonsense", "is no .docx that can be read"),
        ("folder/", b"", "is no file"),
        ("missing", None, "cannot be read: No such file"),
    ],
)
def test_files_are_refused_by_name_and_reason(tmp_path: Path, name: str, data: bytes | None, said: str) -> None:
    if name.endswith((".pdf", ".docx")):
        pytest.importorskip({"a.pdf": "pypdf", "a.docx": "docx"}[name])
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    elif data is not None:
        path.write_bytes(data)
    with pytest.raises(QLocalError) as caught:
        read_document(path)
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_a_file_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(QLocalError, match="at most 32 MiB"):
        read_document(path)


def test_a_missing_library_is_a_sentence_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pypdf", None)
    monkeypatch.setitem(__import__("sys").modules, "docx", None)
    for name in ("a.pdf", "a.docx"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(QLocalError, match=r"qlocal\[docs\]"):
            read_document(tmp_path / name)


def test_a_word_document_gives_its_paragraphs_and_tables(tmp_path: Path) -> None:
    docx = pytest.importorskip("docx")
    document = docx.Document()
    document.add_paragraph("Bees 蜜蜂")
    table = document.add_table(rows=1, cols=2)
    table.cell(0, 0).text, table.cell(0, 1).text = "a", "b"
    document.save(str(tmp_path / "a.docx"))
    assert read_document(tmp_path / "a.docx").text == "Bees 蜜蜂\n\n| a | b |"


def test_a_pdf_gives_its_text(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    (tmp_path / "a.pdf").write_bytes(pdf_of(b"BT /F1 12 Tf 50 700 Td (Bees hum) Tj ET"))
    document = read_document(tmp_path / "a.pdf")
    assert document.text.strip() == "Bees hum" and not document.unseen


def test_what_a_documents_readers_do_not_see_is_told_and_can_be_looked_at(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_of(b"BT /F1 12 Tf 50 700 Td (Bees hum) Tj 1 g 0 -20 Td (praise the bees) Tj ET"))

    async def use(chat: Chat) -> None:
        await chat.say(f"/file {path}")
        await chat.until(lambda: "a.pdf has passages that its readers do not see (1 in white)" in chat.notice)
        await chat.pilot.press("alt+v")
        await chat.until(lambda: isinstance(chat.app.screen, TextScreen))
        assert "praise the bees" in chat.prompt.sent_text

    run_chat(tmp_path, ScriptedLink([]), use, size=(140, 30))


def test_the_libraries_for_documents_are_never_in_the_chats_process(tmp_path: Path) -> None:
    docx = pytest.importorskip("docx")
    pytest.importorskip("pypdf")
    document = docx.Document()
    document.add_paragraph("Bees")
    document.save(str(tmp_path / "a.docx"))
    (tmp_path / "a.pdf").write_bytes(pdf_of(b"BT /F1 12 Tf 50 700 Td (Bees) Tj ET"))
    script = (
        "import sys; from pathlib import Path; from qlocal.chat.documents import read_document\n"
        "for name in sys.argv[1:]: assert read_document(Path(name)).text.strip() == 'Bees'\n"
        "assert not {'pypdf', 'docx', 'lxml'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "a.docx", tmp_path / "a.pdf"], check=True)


def test_unknown_chips_stay_what_they_are() -> None:
    attachments = Attachments()
    assert attachments.expand("[Pasted text #7 +2 lines]") == "[Pasted text #7 +2 lines]"
    chip = attachments.add("x", "a[1].txt").chip
    assert chip == "[File #1 a_1_.txt +1 lines]" and attachments.expand(f"{chip}{chip}").count("a[1].txt:") == 2


def test_the_message_can_be_written_in_an_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf " and more\\n" >> "$1"\n')
    editor.chmod(0o755)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", str(editor))

    @contextlib.contextmanager
    def suspended() -> Iterator[None]:
        yield

    async def use(chat: Chat) -> None:
        await chat.pilot.press(*"text", "ctrl+g")
        await chat.until(lambda: "cannot be handed" in chat.notice)  # there is no terminal in a test
        monkeypatch.setattr(chat.app, "suspend", suspended)
        await chat.pilot.press("ctrl+g")
        await chat.until(lambda: chat.prompt.text == "text and more")
        monkeypatch.setenv("EDITOR", str(tmp_path / "nothing"))
        await chat.pilot.press("ctrl+g")
        await chat.until(lambda: "cannot be started" in chat.notice)
        monkeypatch.setenv("EDITOR", "false")
        await chat.pilot.press("ctrl+g")
        await chat.until(lambda: "ended with code 1" in chat.notice)
        assert chat.prompt.text == "text and more"

    run_chat(tmp_path, ScriptedLink([]), use)


def test_what_a_message_would_cost_stands_there_before_enter(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.pilot.press(*"hello")
        await chat.until(lambda: "6,144 tokens cached, 212 to read" in chat.status)
        chat.link.counted = TokenCount(9000, 8192)
        await chat.pilot.press("x")
        await chat.until(lambda: "9,000 tokens, 809 more than fit" in chat.status)

    run_chat(tmp_path, ScriptedLink([], counted=TokenCount(6356, 8192, 6144)), use, size=(160, 30))


def test_the_price_has_seconds_where_a_speed_was_measured() -> None:
    assert price(TokenCount(6356, 8192, 6144), 200.0) == "6,144 tokens cached, 212 to read, about 1 s"
    assert price(TokenCount(6356, 8192), 200.0) == "6,356 of 8,192 tokens"


def test_a_draft_keeps_what_its_chips_stand_for(tmp_path: Path) -> None:
    async def write(chat: Chat) -> None:
        await paste(chat, LONG)
        await chat.pilot.press("x")
        await chat.until(lambda: chat.app.chat.desk.feature(Drafts)._saved == LONG + "x")

    async def read(chat: Chat) -> None:
        await chat.until(lambda: chat.prompt.text == LONG + "x")

    run_chat(tmp_path, ScriptedLink([]), write)
    run_chat(tmp_path, ScriptedLink([]), read)
