"""The history: a tree on disk that survives kills, other writers, old schemas and damaged files."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlocal.chat.store.database import open_database
from qlocal.chat.store.history import History
from qlocal.chat.store.migrations import LATEST, MIGRATIONS, Migration
from qlocal.chat.store.records import MessageState, Role, title_of
from qlocal.chat.store.threaded import Store
from qlocal.errors import HistoryError

WRITER = """
import sys
from pathlib import Path
from qlocal.chat.store.database import open_database
from qlocal.chat.store.history import History
from qlocal.chat.store.records import Role
history = History(open_database(Path(sys.argv[1]))[0])
conversation_id = history.new_conversation("killed", None, None)
prompt = history.add_message(conversation_id, None, Role.USER, "killed")
answer = history.begin_answer(conversation_id, prompt, "m")
text = ""
for i in range(10**6):
    text += f"word{i} "
    history.save_partial(answer, text)
    print(i, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chat" / "history.sqlite3"


@pytest.fixture
def history(path: Path) -> Iterator[History]:
    connection, notice = open_database(path)
    assert notice is None
    yield History(connection)
    connection.close()


def test_regenerating_adds_a_sibling_and_keeps_the_old_answer(history: History) -> None:
    conversation_id = history.new_conversation("Hello\nmore", "m", None)
    prompt = history.add_message(conversation_id, None, Role.USER, "Hello\nmore")
    first = history.begin_answer(conversation_id, prompt, "m")
    history.finish_answer(first, "one", MessageState.COMPLETE, {"completion_tokens": 3})
    second = history.begin_answer(conversation_id, prompt, "m")
    history.finish_answer(second, "two", MessageState.STOPPED, {})
    shown = history.branch(conversation_id)[-1]
    assert (shown.content, shown.siblings, shown.sibling_idx) == ("two", 2, 1)
    below = history.add_message(conversation_id, first, Role.USER, "on the first")
    history.select_branch(conversation_id, second)
    assert [m.content for m in history.branch(conversation_id)] == ["Hello\nmore", "two"]
    history.select_branch(conversation_id, first)
    assert history.branch(conversation_id)[-1].message_id == below
    assert history.siblings(first) == [first, second]


def test_conversations_are_listed_last_used_first_with_their_first_line(history: History) -> None:
    first = history.new_conversation("\n  first line  \nx", None, "be brief")
    second = history.new_conversation("y" * 200, None, None)
    history.add_message(first, None, Role.USER, "again")
    listed = history.conversations()
    assert [c.conversation_id for c in listed] == [first, second]
    assert (listed[0].title, listed[0].num_messages) == ("first line", 1)
    found = history.conversation(first)
    assert found is not None and found.system == "be brief"
    assert len(title_of("y" * 200)) == 80


def test_prompts_come_back_newest_first_without_repetitions(history: History) -> None:
    conversation_id = history.new_conversation("a", None, None)
    parent = None
    for text in ("a", "b", "a"):
        parent = history.add_message(conversation_id, parent, Role.USER, text)
    assert history.recent_prompts() == ["a", "b"]


@pytest.mark.parametrize("word", ["needle", "量化模型", "naïve"])
def test_finished_messages_can_be_found_in_every_script(path: Path, history: History, word: str) -> None:
    conversation_id = history.new_conversation("a", None, None)
    prompt = history.add_message(conversation_id, None, Role.USER, "question")
    answer = history.begin_answer(conversation_id, prompt, None)
    history.save_partial(answer, f"some {word} half")
    with sqlite3.connect(path) as other:
        find = "SELECT rowid FROM message_text WHERE message_text MATCH ?"
        assert other.execute(find, (f'"{word}"',)).fetchall() == []
        history.finish_answer(answer, f"text with {word} inside", MessageState.COMPLETE, {})
        assert other.execute(find, (f'"{word}"',)).fetchall() == [(answer,)]
        other.execute("INSERT INTO message_text (message_text) VALUES ('integrity-check')")
    other.close()


def test_a_killed_writer_loses_nothing_it_had_saved(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 40:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = int(line)
    process.stdout.close()
    connection, notice = open_database(path)
    assert notice is None
    history = History(connection)
    history.close_orphans()
    answer = history.branch(history.conversations()[0].conversation_id)[-1]
    assert answer.state is MessageState.STOPPED
    assert answer.content.split()[saved] == f"word{saved}"
    assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    connection.close()


def test_answers_of_a_chat_that_still_runs_are_left_alone(history: History) -> None:
    conversation_id = history.new_conversation("a", None, None)
    prompt = history.add_message(conversation_id, None, Role.USER, "a")
    history.begin_answer(conversation_id, prompt, None)
    history.close_orphans()
    assert history.branch(conversation_id)[-1].state is MessageState.STREAMING


def test_two_chats_write_at_once_and_nothing_is_lost(path: Path) -> None:
    def write(name: str) -> None:
        connection, _ = open_database(path)
        history = History(connection)
        conversation_id = history.new_conversation(name, None, None)
        parent = None
        for i in range(30):
            parent = history.add_message(conversation_id, parent, Role.USER, f"{name} {i}")
        connection.close()

    threads = [threading.Thread(target=write, args=(name,)) for name in ("left", "right")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    connection, _ = open_database(path)
    history = History(connection)
    for conversation in history.conversations():
        contents = [m.content for m in history.branch(conversation.conversation_id)]
        assert contents == [f"{conversation.title} {i}" for i in range(30)]
    assert len(history.conversations()) == 2
    connection.close()


def open_at_once(path: Path, num: int) -> list[int]:
    """Open and close a history in so many processes at the same moment; return how they ended."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(num)

    def use() -> None:
        barrier.wait()
        connection, salvage = open_database(path)
        connection.close()
        sys.exit(salvage is not None)

    processes = [context.Process(target=use) for _ in range(num)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def test_chats_that_start_at_once_share_the_history_that_one_of_them_makes(tmp_path: Path) -> None:
    for attempt in range(20):
        assert open_at_once(tmp_path / str(attempt) / "history.sqlite3", 3) == [0, 0, 0]


def test_a_migration_copies_the_file_first_and_keeps_every_message(path: Path) -> None:
    connection, _ = open_database(path)
    history = History(connection)
    history.new_conversation("old", None, None)
    connection.close()
    added = Migration(LATEST + 1, ("ALTER TABLE conversation ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0",))
    connection, _ = open_database(path, [*MIGRATIONS, added])
    assert connection.execute("SELECT title, pinned FROM conversation").fetchone()[:] == ("old", 0)
    connection.close()
    copy = sqlite3.connect(path.with_name(f"history.v{LATEST}.sqlite3"))
    assert copy.execute("SELECT title FROM conversation").fetchall() == [("old",)]
    assert copy.execute("PRAGMA user_version").fetchone() == (LATEST,)
    copy.close()


def test_a_migration_that_fails_leaves_the_schema_as_it_was(path: Path) -> None:
    open_database(path)[0].close()
    broken = Migration(LATEST + 1, ("CREATE TABLE half (x)", "CREATE nonsense"))
    with pytest.raises(HistoryError, match="nonsense"):
        open_database(path, [*MIGRATIONS, broken])
    connection, _ = open_database(path)
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone()[0] == 0
    connection.close()


def test_a_history_of_a_newer_version_is_refused(path: Path) -> None:
    connection, _ = open_database(path)
    connection.execute(f"PRAGMA user_version = {LATEST + 7}")
    connection.close()
    with pytest.raises(HistoryError, match=f"schema {LATEST + 7}"):
        open_database(path)


@pytest.mark.parametrize("damage", ["header", "middle"])
def test_a_damaged_file_is_put_aside_and_said(path: Path, damage: str) -> None:
    connection, _ = open_database(path)
    History(connection).new_conversation("x" * 50, None, None)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    data = bytearray(path.read_bytes())
    start = 0 if damage == "header" else 4096
    data[start : start + 4096] = b"\xa5" * 4096
    path.write_bytes(data)
    connection, notice = open_database(path)
    assert notice is not None and "damaged" in str(notice)
    kept = next(path.parent.glob("history.damaged-*.sqlite3"))
    assert kept.read_bytes() == bytes(data) and kept.name in str(notice)
    # The page in the middle is the one of the titles.
    assert [one.title for one in History(connection).conversations()] == ["x" * 50] * (damage == "header")
    connection.close()


def test_the_history_is_for_its_owner_alone(path: Path) -> None:
    open_database(path)[0].close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HistoryError, match="file"):
        open_database(tmp_path / "file" / "history.sqlite3")


def test_the_thread_does_things_in_order_and_finishes_them_at_close(path: Path) -> None:
    async def scenario() -> None:
        store = Store(path)
        assert await store.open() is None
        conversation_id = await store.run(lambda h: h.new_conversation("a", None, None))
        prompt = await store.run(lambda h: h.add_message(conversation_id, None, Role.USER, "a"))
        answer = await store.run(lambda h: h.begin_answer(conversation_id, prompt, None))
        store.submit(lambda h: h.save_partial(answer, "half"))
        store.submit(lambda h: h.finish_answer(answer, "whole", MessageState.COMPLETE, {}))
        await store.close()

    asyncio.run(scenario())
    connection, _ = open_database(path)
    assert History(connection).branch(1)[-1].content == "whole"
    connection.close()


def test_sql_errors_reach_the_screen_as_one_sentence(path: Path) -> None:
    async def scenario() -> None:
        store = Store(path)
        with pytest.raises(HistoryError, match="not open"):
            await store.run(lambda h: h.conversations())
        await store.open()
        with pytest.raises(HistoryError, match="FOREIGN KEY"):
            await store.run(lambda h: h.add_message(999, None, Role.USER, "a"))
        await store.close()

    asyncio.run(scenario())
