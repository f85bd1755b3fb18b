"""A damaged history: what can be read is there, the file is kept as it was, and nothing ends the chat."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from qlocal.chat.logprobs import Candidate, TokenLogprobs, pack
from qlocal.chat.store.database import connect, copy_salvaged, open_database, salvage_database
from qlocal.chat.store.history import History
from qlocal.chat.store.pages import Pages, read_journal
from qlocal.chat.store.records import Conversation, Message, MessageState, Role
from qlocal.chat.store.salvage import Salvage
from qlocal.chat.words import salvaged
from qlocal.commands import history as command
from qlocal.errors import HistoryError
from tests.chat.histories import stored_schemas

SLOW = pytest.mark.slow
PAGE = 4096
NUM_CONVERSATIONS, NUM_MESSAGES = 6, 40
Content = tuple[dict[int, Conversation], dict[int, Message]]


def fill(path: Path) -> None:
    """Make a history of all kinds of rows: short ones, ones over several pages, branches, drafts, probabilities."""
    connection, _ = open_database(path)
    history, chance = History(connection), random.Random(5)
    for number in range(NUM_CONVERSATIONS):
        one = history.new_conversation(f"talk {number} 量化", "m", "be brief" if number % 2 else None)
        history.tag(one, [f"tag{number}"])
        parent: int | None = None
        for idx in range(NUM_MESSAGES // 2):
            length = chance.choice([1, 5, 40, 40, 700 if idx % 5 else 3000])
            parent = history.add_message(one, parent, Role.USER, f"question {number}.{idx} 问 " * length)
            answer = history.begin_answer(one, parent, "m")
            history.finish_answer(answer, f"answer {number}.{idx} é " * length, MessageState.COMPLETE, {"n": idx})
            parent = answer if idx % 7 else parent
        history.save_draft(one, f"draft {number}")
    history.save_logprobs(2, pack([TokenLogprobs(Candidate(1, b"a", -0.5))]))
    connection.close()


def content(path: Path) -> Content:
    connection, _ = open_database(path)
    with closing(connection):
        return content_of(connection)


def content_of(connection: sqlite3.Connection) -> Content:
    history = History(connection)
    conversations = {one.conversation_id: one for one in history.conversations()}
    return conversations, {m.message_id: m for one in conversations for m in history.messages(one)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Content]:
    path = tmp_path_factory.mktemp("whole") / "history.sqlite3"
    fill(path)
    return path.read_bytes(), content(path)


def opened(folder: Path, data: bytes) -> tuple[Content, Salvage | None]:
    """Open these bytes as a history; what is kept of them is what they were."""
    folder.mkdir()
    path = folder / "history.sqlite3"
    path.write_bytes(data)
    connection, salvage = open_database(path)
    with closing(connection):
        found = content_of(connection)
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok" or salvage is None
        assert not connection.execute("PRAGMA foreign_key_check").fetchall() or salvage is None
        for one in found[0]:
            History(connection).branch(one)
        History(connection).search("answer")
    if salvage is not None:
        assert salvage.kept.read_bytes() == data
        assert salvaged(salvage)
    shutil.rmtree(folder)
    return found, salvage


def test_everything_of_a_whole_file_is_read_from_its_pages_alone(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    fill(path)
    before = content(path)
    salvage = salvage_database(path)
    assert content(path) == before
    assert (salvage.num_missing, salvage.num_cut) == (0, 0)
    with closing(connect(path)) as database:
        assert database.execute("SELECT content FROM draft WHERE conversation_id = 3").fetchone()[0] == "draft 2"
        assert History(database).logprobs(2) is not None
        assert {hit.message_id for hit in History(database).search("量化")} == set()
        assert len(History(database).search("question")) == 50
        assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


@pytest.mark.parametrize("schema", stored_schemas())
def test_a_damaged_history_of_every_schema_is_read(tmp_path: Path, schema: int) -> None:
    path = tmp_path / "history.sqlite3"
    with closing(connect(path)) as database:
        database.execute("PRAGMA foreign_keys = OFF")
        database.executescript(stored_schemas()[schema].read_text(encoding="utf-8"))
    path.write_bytes(b"not a database! " + path.read_bytes()[16:])
    connection, salvage = open_database(path)
    with closing(connection):
        assert salvage is not None and (salvage.num_conversations, salvage.num_messages) == (3, 8)
        assert History(connection).branch(1)[-1].content == "Four bits are half a by"
        assert History(connection).branch(1)[-1].state is MessageState.STOPPED


@pytest.mark.parametrize("step", [17, pytest.param(1, marks=SLOW)])
def test_of_a_file_cut_at_any_page_the_pages_before_are_read(
    tmp_path: Path, whole: tuple[bytes, Content], step: int
) -> None:
    data, (_, messages) = whole
    for number in range(1, len(data) // PAGE, step):
        for cut in (number * PAGE, number * PAGE - 1000):
            found, salvage = opened(tmp_path / "cut", data[:cut])
            assert salvage is not None
            for message_id, message in found[1].items():
                assert messages[message_id].content.startswith(message.content)
            rows = [one for one in Pages(data[:cut]).table_rows() if len(one.values) == 10 and not one.is_cut]
            assert len(found[1]) >= len([one for one in rows if one.values[3] in ("user", "assistant")])
            assert salvage.num_missing >= 0


@pytest.mark.parametrize("step", [23, pytest.param(1, marks=SLOW)])
def test_of_a_file_with_any_page_overwritten_the_other_pages_are_read(
    tmp_path: Path, whole: tuple[bytes, Content], step: int
) -> None:
    data, (_, messages) = whole
    for number in range(0, len(data) // PAGE, step):
        damaged = data[: number * PAGE] + b"\xa5" * PAGE + data[(number + 1) * PAGE :]
        found, salvage = opened(tmp_path / "page", damaged)
        lost = messages.keys() - found[1].keys()
        assert len(lost) <= PAGE // 20  # what one page can hold
        assert salvage is None or salvage.num_missing == len(lost)
        for message_id, message in found[1].items():
            assert messages[message_id].role is message.role


@pytest.mark.parametrize("num_flips", [60, pytest.param(3000, marks=SLOW)])
def test_a_flipped_bit_anywhere_costs_little_and_ends_nothing(
    tmp_path: Path, whole: tuple[bytes, Content], num_flips: int
) -> None:
    data, (_, messages) = whole
    chance = random.Random(11)
    regions = [range(100), range(100, PAGE), range(PAGE, len(data)), range(len(data) - PAGE, len(data))]
    for number in range(num_flips):
        place, bit = chance.choice(regions[number % 4]), 1 << chance.randrange(8)
        damaged = data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]
        try:
            found, _ = opened(tmp_path / f"flip{number}", damaged)
        except HistoryError as error:  # of a version that is not ours, or of tables that are not
            assert "history" in str(error)
            path = tmp_path / f"flip{number}" / "history.sqlite3"
            assert path.read_bytes()[100:] == damaged[100:]
            continue
        assert len(messages.keys() - found[1].keys()) <= PAGE // 20


@pytest.mark.parametrize("num_cases", [30, pytest.param(600, marks=SLOW)])
def test_of_a_torn_or_damaged_journal_nothing_is_lost_that_can_be_read(tmp_path: Path, num_cases: int) -> None:
    path = tmp_path / "history.sqlite3"
    connection, _ = open_database(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    history = History(connection)
    one = history.new_conversation("t", None, None)
    parent, ends = None, []
    for number in range(20):
        parent = history.add_message(one, parent, Role.USER, f"message {number} " * 30)
        ends.append(Path(f"{path}-wal").stat().st_size)
    main, wal = path.read_bytes(), Path(f"{path}-wal").read_bytes()
    connection.close()
    chance = random.Random(2)
    for number in range(num_cases):
        torn, place = number % 2 == 0, chance.randrange(len(wal))
        damaged = wal[:place] if torn else wal[:place] + bytes([wal[place] ^ 255]) + wal[place + 1 :]
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "history.sqlite3").write_bytes(main)
        (folder / "history.sqlite3-wal").write_bytes(damaged)
        again, salvage = open_database(folder / "history.sqlite3")
        with closing(again):
            found = [m.content for m in History(again).messages(1)]
        if torn:  # as after a power cut: what was whole is there, without a word
            assert salvage is None
            assert found == [f"message {n} " * 30 for n in range(len(found))]
            assert len(found) == len([end for end in ends if end <= place])
        elif salvage is not None:
            assert Path(f"{salvage.kept}-wal").read_bytes() == damaged
            assert len(found) >= 18
        else:
            assert place >= ends[-2], "only in the last transaction is damage what a power cut leaves"
            assert len(found) >= 19
        shutil.rmtree(folder)


def test_without_its_journal_a_file_is_what_it_was_before(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    fill(path)
    before = content(path)
    connection, _ = open_database(path)
    History(connection).new_conversation("in the journal", None, None)
    shutil.copy(path, tmp_path / "copy.sqlite3")
    connection.close()
    assert content(tmp_path / "copy.sqlite3") == before


def test_a_journal_of_a_chat_that_runs_is_not_taken_for_damaged(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    connection, _ = open_database(path)
    with closing(connection):
        for number in range(30):
            History(connection).new_conversation(f"{number}", None, None)
            assert not read_journal(Path(f"{path}-wal").read_bytes(), PAGE).is_damaged
            connection.execute("PRAGMA wal_checkpoint(RESTART)") if number % 10 == 9 else None
        again, salvage = open_database(path)
        again.close()
        assert salvage is None


def test_damaged_files_of_one_second_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    fill(path)
    kept = {salvage_database(path).kept for _ in range(3)}
    assert len(kept) == 3 and all(one.exists() for one in kept)


def test_a_salvage_that_cannot_be_written_leaves_the_file_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "history.sqlite3"
    fill(path)
    damaged = b"\0" * 100 + path.read_bytes()[100:]
    path.write_bytes(damaged)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("qlocal.chat.store.database.write_rows", full)
        with pytest.raises(HistoryError, match="No space left"):
            open_database(path)
    assert path.read_bytes() == damaged
    assert [one.name for one in tmp_path.iterdir()] == ["history.sqlite3"]
    connection, salvage = open_database(path)
    connection.close()
    assert salvage is not None and salvage.num_messages == NUM_CONVERSATIONS * NUM_MESSAGES


def test_a_parent_that_leads_in_circles_ends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    connection, _ = open_database(path)
    with closing(connection):
        history = History(connection)
        one = history.new_conversation("t", None, None)
        first = history.add_message(one, None, Role.USER, "first")
        last = history.add_message(one, first, Role.ASSISTANT, "last")
        connection.execute("UPDATE message SET parent_id = ? WHERE id = ?", (last, first))
        assert [m.content for m in history.branch(one)] == ["first", "last"]
        history.select_branch(one, first)
        assert history.branch(one)[-1].content == "last"


def test_the_command_makes_the_history_anew_and_adds_what_a_kept_file_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QLOCAL_HOME", str(tmp_path))
    path = tmp_path / "history.sqlite3"
    fill(path)
    data = path.read_bytes()
    leaf = next(n for n in range(len(data) // PAGE) if b"question 2.3 " in data[n * PAGE : n * PAGE + PAGE])
    path.write_bytes(data[: leaf * PAGE] + bytes(PAGE) + data[leaf * PAGE + PAGE :])
    assert run_history("recover") == 0
    told = capsys.readouterr().out
    assert "kept as history.damaged-" in told and "missing" in told
    kept = next(tmp_path.glob("history.damaged-*.sqlite3"))
    before = content(path)
    assert run_history("recover", str(kept)) == 0
    assert len(content(path)[1]) == 2 * len(before[1])
    with pytest.raises(HistoryError, match="cannot be opened"):
        run_history("recover", str(tmp_path / "nowhere"))


def run_history(*arguments: str) -> int:
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))


def test_a_damaged_history_of_a_newer_version_is_left_to_that(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    fill(path)
    with closing(connect(path)) as database:
        database.execute("PRAGMA user_version = 9")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damaged = path.read_bytes()[:-PAGE]
    path.write_bytes(damaged)
    with pytest.raises(HistoryError, match="schema 9"):
        open_database(path)
    assert path.read_bytes() == damaged
    with pytest.raises(HistoryError, match="schema 9"):
        copy_salvaged(path, tmp_path / "copy.sqlite3")
