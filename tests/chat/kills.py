"""A conversation in which a process is killed: `python -m tests.chat.kills MOMENTS` kills the app, the server and the
engine at so many random moments each, and prints what was found as a table.

The chat, the server and the rank are processes of their own, as users have them; the rank only talks
(`talking_rank.py`), so that it is known what was said when.
"""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from qlocal import launch
from qlocal.chat.store.database import open_database
from qlocal.chat.store.history import History
from qlocal.chat.store.records import MessageState
from qlocal.launch import Address
from tests.chat.killing import is_whole
from tests.chat.talking_rank import TELL
from tests.chat.test_terminal import Terminal

APP, SERVER, ENGINE = VICTIMS = ("app", "server", "engine")
START = (
    "import sys; from qlocal import launch; from qlocal.chat.app import run_chat;"
    "from qlocal.config import ChatOptions;"
    "launch.SERVE_COMMAND = (sys.executable, '-m', 'tests.chat.talking_rank', 'serve');"
    "sys.exit(run_chat(ChatOptions(model=sys.argv[1], context=1 << 20)))"
)
DRAFT = "and what then"
LEAST_S, MOST_S = 1.2, 4.0
WHY = {
    APP: ("■ stopped",),
    SERVER: ("The server went away", "broke"),
    ENGINE: ("SIGKILL",),
}
"""What the chat says of it afterwards, in one of these ways."""
_WORD = re.compile(rb"word(\d+)")


@dataclass(frozen=True)
class Found:
    """What was there after a kill. lost: words that were on the screen a second before and are not in the history.
    late: the same of the last second. is_kept: the turn before, the prompt, the draft. again_s: until the chat had its
    next answer."""

    lost: int
    late: int
    is_kept: bool
    is_whole: bool
    why: str
    again_s: float


def kill(victim: str, moment: int, home: Path) -> Found:
    """Hold a conversation in `home`, kill one of its processes at a moment that the number gives, and go on."""
    chance = random.Random(f"{victim} {moment}")
    model, address = home / "roomy", Address(socket=home / "run" / "server.sock")
    model.touch()
    try:
        terminal = Terminal(str(model), home, START)
        with closing(terminal):
            seen = _converse(terminal, chance.uniform(LEAST_S, MOST_S))
            os.kill(_pid_of(victim, terminal, address), signal.SIGKILL)
            killed_at = time.monotonic()
            if victim != APP:
                why = _go_on(terminal, victim)
                again_s = time.monotonic() - killed_at
                terminal.press(b"\x11")
        if victim == APP:
            terminal = Terminal(str(model), home, START)
            with closing(terminal):
                terminal.until(b"roomy")
                terminal.press(b"\x0f")
                terminal.until(b"4 messages")
                terminal.press(b"\r")
                why = _go_on(terminal, victim)
                again_s = time.monotonic() - killed_at
                terminal.press(b"\x11")
    finally:
        launch.stop(address)
    shown = max(word for _, word in seen)
    shown_before = max((word for at, word in seen if at < killed_at - 1.0), default=0)
    return _found(home / "history.sqlite3", shown_before, shown, why, again_s)


def _converse(terminal: Terminal, for_s: float) -> list[tuple[float, int]]:
    """Hold a turn, begin a second one and a third one's draft; return when which word was on the screen."""
    terminal.until(b"ready")
    terminal.press(b"hello\r")
    terminal.until(b"Heard: ello.")
    terminal.press(TELL.encode() + b"\r")
    terminal.until(b"word3")
    terminal.press(DRAFT.encode())
    seen, ends_at = [], time.monotonic() + for_s
    while time.monotonic() < ends_at:
        terminal.read()
        seen.append((time.monotonic(), max((int(n) for n in _WORD.findall(terminal.output)), default=0)))
    return seen


def _go_on(terminal: Terminal, victim: str) -> str:
    """Wait until the chat says what has happened, send the draft, wait for its answer; return what was said."""
    found: list[str] = []

    def is_said() -> bool:
        found[:] = [way for way in WHY[victim] if way.encode() in terminal.output]
        return bool(found)

    terminal.until_so(is_said, f"one of {WHY[victim]}")
    terminal.output = b""
    terminal.press(b"\r")
    terminal.until(b"Heard: then.")
    return found[0]


def _found(path: Path, shown_before: int, shown: int, why: str, again_s: float) -> Found:
    with closing(open_database(path)[0]) as database:
        branch = History(database).branch(1)
    texts = [message.content for message in branch]
    written = max((int(n) for n in _WORD.findall(texts[3].encode())), default=-1) if len(texts) > 3 else -1
    is_kept = (
        texts[:3] == ["hello", "Heard: ello. ", TELL]
        and texts[3].startswith("word0 word1 ")
        and branch[3].state in (MessageState.STOPPED, MessageState.FAILED)
        and texts[4:] == [DRAFT, "Heard: then. "]
    )
    lost, late = max(0, shown_before - written), max(0, shown - max(written, shown_before))
    return Found(lost, late, is_kept, is_whole(path), why, again_s)


def _pid_of(victim: str, terminal: Terminal, address: Address) -> int:
    if victim == APP:
        return terminal.process.pid
    status = launch.fetch_status(address)
    assert status is not None, "the server answers"
    return status.pid if victim == SERVER else _child_of(status.pid)


def _child_of(parent: int) -> int:
    """Return the rank of a server."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            of, command = folder.joinpath("stat").read_text(), folder.joinpath("cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if int(of.rpartition(")")[2].split()[1]) == parent and b"--fd" in command:
            return int(folder.name)
    raise AssertionError("the server has no rank")


def main(moments: int) -> None:
    heads = (
        "killed",
        "moments",
        "lost from before the last second",
        "from the last second, at most",
        "turns, prompts or drafts lost",
        "broken files",
        "said why",
        "next answer after, median",
    )
    print(f"| {' | '.join(heads)} |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for victim in VICTIMS:
        found = []
        for moment in range(moments):
            with tempfile.TemporaryDirectory(prefix="kills-") as home:
                found.append(kill(victim, moment, Path(home)))
        cells = (
            victim,
            moments,
            f"{sum(one.lost for one in found)} words",
            f"{max(one.late for one in found)} words",
            sum(not one.is_kept for one in found),
            sum(not one.is_whole for one in found),
            sum(bool(one.why) for one in found),
            f"{median(one.again_s for one in found):.1f} s",
        )
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
