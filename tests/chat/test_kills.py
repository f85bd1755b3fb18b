"""Kill -9 at any moment: no file is broken, and what was acknowledged, shown or typed a second before is there."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from qlocal.chat.store.database import open_database
from qlocal.chat.store.history import History
from qlocal.chat.store.records import MessageState, Role
from qlocal.errors import HistoryError
from tests.chat.driving import stored
from tests.chat.killing import is_whole
from tests.chat.test_terminal import ROOT, Terminal
from tests.chat.test_terminal import url as url  # a fixture

SLOW = pytest.mark.slow
_WORD = re.compile(rb"word(\d+)")


@pytest.mark.parametrize("cycles", [25, pytest.param(10_000, marks=SLOW)])
def test_killed_writers_break_nothing_and_lose_nothing_they_said_was_there(tmp_path: Path, cycles: int) -> None:
    command = [sys.executable, "-m", "tests.chat.killing", str(tmp_path / "history.sqlite3"), str(cycles), "7"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout)
    assert found["acknowledged"] > cycles and (found["lost"], found["broken"]) == (0, 0)


@pytest.mark.parametrize("moment", [0, *(pytest.param(number, marks=SLOW) for number in range(1, 20))])
def test_a_killed_chat_has_all_that_was_on_the_screen_a_second_before(url: str, tmp_path: Path, moment: int) -> None:
    chance = random.Random(moment)
    terminal = Terminal(url, tmp_path)
    terminal.until(b"fake-model")
    terminal.press(b"slow\r")
    terminal.until(b"word3")
    terminal.press(b"next question")
    typed_at, ends_at = time.monotonic(), time.monotonic() + 1.2 + 2.0 * chance.random()
    seen: list[tuple[float, int]] = []
    while time.monotonic() < ends_at:
        terminal.read()
        seen.append((time.monotonic(), max((int(n) for n in _WORD.findall(terminal.output)), default=0)))
    terminal.process.kill()
    killed_at = time.monotonic()
    terminal.close()
    history = stored(tmp_path)
    prompt, answer = history.branch(1)
    expected = max(number for at, number in seen if at < killed_at - 1.0)
    assert prompt.content == "slow" and f"word{expected} " in answer.content and expected > 0
    assert typed_at < killed_at - 1.0 and history.draft(1) == "next question"
    history.close_orphans()
    assert history.branch(1)[1].state is MessageState.STOPPED
    assert is_whole(tmp_path / "history.sqlite3")


@pytest.mark.parametrize("moment", [0, *(pytest.param(number, marks=SLOW) for number in range(1, 20))])
def test_when_the_server_is_killed_the_text_stays_and_the_chat_says_why(tmp_path: Path, moment: int) -> None:
    script = (
        "import sys, time; from tests.chat.fake_server import fake_server\n"
        "with fake_server() as url: print(url, flush=True); time.sleep(600)"
    )
    server = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    terminal = Terminal(server.stdout.readline().strip(), tmp_path)
    try:
        terminal.until(b"fake-model")
        terminal.press(b"slow\r")
        terminal.until(b"word5")
        time.sleep(random.Random(moment).random())
        server.kill()
        terminal.until("■".encode())
        shown = max(int(number) for number in _WORD.findall(terminal.output))
        terminal.press(b"\x11")
        assert terminal.close() == 0
    finally:
        server.kill()
        server.communicate()
    _, answer = stored(tmp_path).branch(1)
    assert answer.state is MessageState.FAILED and answer.meta["error"] and f"word{shown}" in answer.content


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
