"""Conversations to files and back: nothing lost in our own format, nothing run from anybody's."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from qlocal.chat.exchange import importing, writing
from qlocal.chat.exchange.export import to_html, to_json, to_markdown
from qlocal.chat.store.database import open_database
from qlocal.chat.store.history import History
from qlocal.chat.store.records import MessageState, Role
from qlocal.cli import main
from qlocal.errors import FormatError
from tests.chat.driving import Chat, run_chat, stored
from tests.chat.scripted import ScriptedLink, answer_of
from tests.chat.test_editing import ask

HOSTILE = "<script>alert(1)</script>\x1b]0;title\x07 & <img src=x onerror=y>"


@pytest.fixture
def history(tmp_path: Path) -> History:
    history = History(open_database(tmp_path / "history.sqlite3")[0])
    first = history.new_conversation("Bees 蜜蜂", "tiny", "Be brief.")
    prompt = history.add_message(first, None, Role.USER, HOSTILE)
    for text in ("They dance.", "They hum."):
        answer = history.begin_answer(first, prompt, "tiny")
        history.finish_answer(answer, text, MessageState.COMPLETE, {"tokens_per_s": 5.0})
    history.select_branch(first, answer - 1)
    history.tag(first, ["insects"])
    return history


def tree(history: History, conversation_id: int) -> list[tuple[object, ...]]:
    messages = history.messages(conversation_id)
    places = {message.message_id: idx for idx, message in enumerate(messages)}
    return [(places.get(m.parent_id or 0), m.role, m.content, m.state, m.model, m.meta) for m in messages]


def test_our_own_json_brings_back_the_whole_tree(history: History, tmp_path: Path) -> None:
    (one,) = history.conversations()
    path = tmp_path / "out.json"
    path.write_text(to_json([(one, history.messages(one.conversation_id))]))
    (imported,) = importing.read(path)
    new_id = history.add_conversation(imported.conversation, imported.messages)
    assert tree(history, new_id) == tree(history, one.conversation_id)
    assert [m.content for m in history.branch(new_id)] == [HOSTILE, "They dance."]
    again = history.conversation(new_id)
    assert again is not None and (again.title, again.system, again.tags) == ("Bees 蜜蜂", "Be brief.", ("insects",))


def test_pages_and_markdown_hold_the_shown_branch_and_run_nothing(history: History) -> None:
    (one,) = history.conversations()
    branch = history.branch(one.conversation_id)
    page, text = to_html(one, branch), to_markdown(one, branch)
    for made in (page, text):
        assert "They dance." in made and "They hum." not in made and "Bees 蜜蜂" in made and "\x1b" not in made
    assert "<script" not in page and "<img" not in page and "default-src 'none'" in page


def test_a_file_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    writing.write_new(path, "first")
    with pytest.raises(FormatError, match="is there already"):
        writing.write_new(path, "second")
    assert path.read_text() == "first" and [p.name for p in tmp_path.iterdir()] == ["a.md"]


def test_chatgpt_trees_are_read(tmp_path: Path, history: History) -> None:
    def node(key: str, parent: str | None, children: list[str], role: str | None, *parts: object) -> dict[str, object]:
        author = {"role": role}
        message = None if role is None else {"author": author, "content": {"parts": list(parts)}, "create_time": 5.0}
        return {"id": key, "parent": parent, "children": children, "message": message}

    mapping = {
        "root": node("root", None, ["sys"], None),
        "sys": node("sys", "root", ["q"], "system", ""),
        "q": node("q", "sys", ["a", "b"], "user", "Why?", {"asset": 1}),
        "a": node("a", "q", [], "assistant", "Because."),
        "b": node("b", "q", [], "assistant", "So."),
    }
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps([{"title": "T", "create_time": 1.0, "current_node": "a", "mapping": mapping}]))
    (imported,) = importing.read(path)
    new_id = history.add_conversation(imported.conversation, imported.messages)
    assert [m.content for m in history.branch(new_id)] == ["Why?", "Because."]
    assert len(history.messages(new_id)) == 3


def test_oterms_database_is_read(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE chat (id INTEGER PRIMARY KEY, name TEXT, model TEXT, system TEXT)")
        database.execute("CREATE TABLE message (id INTEGER PRIMARY KEY, chat_id INTEGER, author TEXT, text TEXT)")
        database.execute("INSERT INTO chat VALUES (1, 'Bees', 'qwen', 'Be brief.')")
        database.executemany(
            "INSERT INTO message (chat_id, author, text) VALUES (1, ?, ?)", [("user", "Why?"), ("assistant", "So.")]
        )
    database.close()
    (imported,) = importing.read(path)
    assert (imported.conversation.title, imported.conversation.system) == ("Bees", "Be brief.")
    assert [(m.role, m.content) for m in imported.messages] == [(Role.USER, "Why?"), (Role.ASSISTANT, "So.")]


@pytest.mark.parametrize(
    "text",
    [
        *("", "[", "{}", "[1]", '[{"mapping": 5}]', '{"format": "qlocal-conversations", "version": 2}', "[" * 100_000),
        '{"format": "qlocal-conversations", "version": 1, "conversations": [{"messages": [{"id": 1, "parent": 1}]}]}',
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hostile.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"hostile\.json"):
        importing.read(path)
    (tmp_path / "other.db").write_bytes(b"SQLite format 3\0" + bytes(100))
    with pytest.raises(FormatError, match=r"other\.db"):
        importing.read(tmp_path / "other.db")


def test_the_chat_exports_and_imports(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await ask(chat, "about bees", "They dance.")
        await chat.say(f"/export {tmp_path / 'bees.json'}")
        await chat.until(lambda: "Written to" in chat.notice)
        await chat.say(f"/export {tmp_path / 'bees.doc'}")
        await chat.until(lambda: "'.doc' is no format" in chat.notice)
        await chat.pilot.press("ctrl+n")
        await chat.say(f"/import-file {tmp_path / 'bees.json'}")
        await chat.until_shown("They dance.")
        assert "1 conversations were imported" in chat.notice

    run_chat(tmp_path, ScriptedLink([answer_of("They dance.")]), use)
    assert len(stored(tmp_path).conversations()) == 2


def test_the_command_line_lists_searches_exports_and_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], history: History
) -> None:
    monkeypatch.setenv("QLOCAL_HOME", str(tmp_path))
    assert main(["history", "list"]) == 0 and "Bees 蜜蜂 #insects" in capsys.readouterr().out
    assert main(["history", "search", "dance"]) == 0 and "They dance." in capsys.readouterr().out
    out = tmp_path / "all.json"
    assert main(["history", "export", str(out)]) == 0
    assert main(["history", "import", str(out)]) == 0
    assert len(history.conversations()) == 2
    assert main(["history", "export", str(tmp_path / "all.md")]) == 2
    assert "several conversations go into .json alone" in capsys.readouterr().err
    assert main(["history", "search"]) == 2 and "needs a text" in capsys.readouterr().err
