"""Kill -9 at any moment: no file is broken, and what was acknowledged, shown or typed a second before is there."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest

from qlocal.chat.store.database import open_database
from qlocal.chat.store.history import History
from qlocal.chat.store.records import Role
from qlocal.errors import HistoryError
from tests.chat.kills import VICTIMS, kill
from tests.chat.test_terminal import ROOT

SLOW = pytest.mark.slow


@pytest.mark.parametrize("cycles", [25, pytest.param(10_000, marks=SLOW)])
def test_killed_writers_break_nothing_and_lose_nothing_they_said_was_there(tmp_path: Path, cycles: int) -> None:
    command = [sys.executable, "-m", "tests.chat.killing", str(tmp_path / "history.sqlite3"), str(cycles), "7"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout)
    assert found["acknowledged"] > cycles and (found["lost"], found["broken"]) == (0, 0)


@pytest.mark.parametrize("moment", [0, *(pytest.param(number, marks=SLOW) for number in range(1, 20))])
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_kill_takes_the_last_second_at_most_and_the_chat_says_why_and_goes_on(victim: str, moment: int) -> None:
    with tempfile.TemporaryDirectory(prefix="kills-") as home:  # a socket's path must be short
        found = kill(victim, moment, Path(home))
    assert (found.lost, found.is_kept, found.is_whole) == (0, True, True), found
    assert found.why, found


@pytest.mark.parametrize("flips", [40, pytest.param(2000, marks=SLOW)])
def test_flipped_bytes_are_noticed_or_harmless_and_never_end_the_chat(tmp_path: Path, flips: int) -> None:
    path = tmp_path / "history.sqlite3"
    history = History(open_database(path)[0])
    conversation_id = history.new_conversation("t", None, None)
    for number in range(30):
        history.add_message(conversation_id, None, Role.USER, f"message {number} " * 30)
    history._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    history._db.close()
    whole, chance = path.read_bytes(), random.Random(3)
    for _ in range(flips):
        place = chance.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << chance.randrange(8))]) + whole[place + 1 :])
        try:
            database, _ = open_database(path)
        except HistoryError:  # a version that is not ours
            continue
        finally:
            for journal in tmp_path.glob("history.sqlite3-*"):
                journal.unlink()
        with closing(database):
            History(database).conversations()
        for aside in tmp_path.glob("history.damaged-*"):
            aside.unlink()


def test_a_clock_that_jumps_changes_no_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(open_database(tmp_path / "history.sqlite3")[0])
    conversation_id = history.new_conversation("t", None, None)
    parent_id = None
    for number, jump in enumerate((0, -86_400, 86_400, -10 * 365 * 86_400, 10 * 365 * 86_400)):
        now = time.time() + jump
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda now=now: now)
            parent_id = history.add_message(conversation_id, parent_id, Role.USER, f"number {number}")
    assert [m.content for m in history.branch(conversation_id)] == [f"number {n}" for n in range(5)]
    assert [hit.snippet for hit in history.search("number")] == [f"number {n}" for n in reversed(range(5))]
