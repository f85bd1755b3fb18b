"""Nothing that a model, a server, a file or a title says is a command to the terminal: every screen, at a real pty."""

from __future__ import annotations

import json
import os
import pkgutil
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from fcntl import ioctl
from importlib import import_module
from pathlib import Path

import pytest
from rich.segment import Segment
from textual.color import Color
from textual.command import CommandPalette
from textual.screen import Screen

from qlocal.chat import screens as chat_screens
from qlocal.chat.clean_filter import CleanFilter
from tests.chat.hostile_app import MARK

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 120.0
PARTS = 4
"""So many processes walk through all payloads, ten each."""

PAYLOADS = {
    "title": "\x1b]0;pwn\x07",
    "title by C1": "\x9d0;pwn\x9c",
    "title without an end": "\x1b]2;pwn",
    "clear": "\x1b[2Jpwn",
    "clear by C1": "\x9b2Jpwn",
    "cursor home": "\x1b[Hpwn",
    "cursor far": "\x1b[999;999Hpwn",
    "colours": "\x1b[31;5mpwn",
    "hidden text": "\x1b[8mpwn\x1b[28m",
    "clipboard": "\x1b]52;c;cHdu\x07",
    "clipboard asked for": "\x1b]52;c;?\x07",
    "link": "\x1b]8;;file:///etc/passwd\x1b\\pwn\x1b]8;;\x1b\\",
    "palette": "\x1b]4;1;rgb:00/00/00\x07",
    "working folder": "\x1b]7;file://host/pwn\x07",
    "notification": "\x1b]9;pwn\x07",
    "iTerm file": "\x1b]1337;File=inline=1:cHdu\x07",
    "kitty image": "\x1b_Ga=T,f=24;cHdu\x1b\\",
    "sixel": "\x1bPq#0;2;0;0;0#0pwn\x1b\\",
    "tmux passthrough": "\x1bPtmux;\x1b\x1b]0;pwn\x07\x1b\\",
    "device attributes": "\x1b[cpwn",
    "cursor position asked": "\x1b[6npwn",
    "answer back": "\x05pwn",
    "terminal reset": "\x1bcpwn",
    "soft reset": "\x1b[!ppwn",
    "alternate screen left": "\x1b[?1049lpwn",
    "mouse on": "\x1b[?1003hpwn",
    "paste on": "\x1b[?2004lpwn",
    "scroll region": "\x1b[1;2rpwn",
    "insert lines": "\x1b[99Lpwn",
    "resize window": "\x1b[8;1;1tpwn",
    "title reported": "\x1b[21tpwn",
    "keyboard protocol": "\x1b[>31upwn",
    "character set": "\x1b(0pwn\x0e",
    "bell": "\x07pwn\x07",
    "backspaces": "safe\x08\x08\x08\x08pwn",
    "carriage return": "safe\rpwn",
    "vertical tab and form feed": "a\x0bpwn\x0cb",
    "writing direction": "pwn\u202egnp.exe\u2066x\u2069",
    "tag characters": "pwn\U000e0041\U000e007f",
    "delete and null": "\x7fpwn\x00",
}

# What Textual itself says to a terminal: modes, keys, cursor, colours, pointer shape, and our own copying.
_OWN = re.compile(
    r"\x1b\[[0-9;:]*m|\x1b\[\d*;?\d*H|\x1b\[\?(?:1049|1000|1003|1015|1006|25|1004|2004|2026|2048|1016|7)[hl]"
    r"|\x1b\[\?(?:2026|2048|1016)\$p|\x1b\[[>=<]?\d*u|\x1b\[\?4m|\x1b\[>4;\d?m|\x1b\]22;[a-z-]*\x07|\x1b\[[0-9]* ?q"
    r"|\x1b\]52;c;[A-Za-z0-9+/=]*\x07"
)
_CONTROL = re.compile("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")


def walked(payloads: Sequence[str], folder: Path) -> list[str]:
    """Return all that the program wrote to its terminal, by payload."""
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chat.hostile_app", json.dumps(payloads), str(folder)],
        stdin=slave, stdout=slave, stderr=slave, cwd=ROOT,
        env={**environment, "TERM": "xterm-256color", "TMPDIR": str(folder), "QLOCAL_HOME": str(folder),
             "QLOCAL_CONFIG": str(folder), "EDITOR": "true", "VISUAL": "true", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(slave)
    written, deadline = b"", time.monotonic() + WAIT_S * len(payloads)
    while time.monotonic() < deadline:
        if select.select([master], [], [], 0.1)[0]:
            try:
                written += os.read(master, 1 << 16)
            except OSError:
                break
        elif process.poll() is not None:
            break
    process.kill()
    os.close(master)
    assert process.wait() == 0, _OWN.sub("", written[-20_000:].decode("utf-8", "replace"))[-3000:]
    return re.split(f"{MARK}\\d+{MARK}\r\n", written.decode("utf-8", "replace"))[: len(payloads)]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_no_stranger_speaks_to_the_terminal(part: int, tmp_path: Path) -> None:
    names = list(PAYLOADS)[part::PARTS]
    written = walked([PAYLOADS[name] for name in names], tmp_path)
    assert len(written) == len(names)
    for name, one in zip(names, written, strict=True):
        assert harm_of(PAYLOADS[name], one) is None, f"{name}: {harm_of(PAYLOADS[name], one)}"
    assert screens() - set(json.loads((tmp_path / "seen.json").read_text())) == set(), "never walked through"


def harm_of(payload: str, written: str) -> str | None:
    """Return what a terminal would have taken for a command, None if nothing."""
    if all(part not in written for part in ("pwn", "cHdu", "52;c;?")):
        return "it was not shown at all"
    if payload in re.sub(r"\x1b\]52;c;[A-Za-z0-9+/=]{12,}\x07", "", written):
        return "it was written as it is"
    left = _OWN.sub("", written).replace("\r\n", "\n")
    found = _CONTROL.search(left) or re.search("\r", left)
    return None if found is None else repr(left[max(0, found.start() - 60) : found.end() + 60])


def screens() -> set[str]:
    """The names of all screens of the chat, and of the palette. What others are derived from is no screen itself."""
    found: set[type] = {CommandPalette}
    for module in pkgutil.iter_modules(chat_screens.__path__):
        members = vars(import_module(f"{chat_screens.__name__}.{module.name}")).values()
        found |= {one for one in members if isinstance(one, type) and issubclass(one, Screen)}
    return {one.__name__ for one in found if one.__module__.startswith("qlocal") or one is CommandPalette} - {
        "TokenWalk"
    }


def test_there_are_forty_payloads() -> None:
    assert len(PAYLOADS) == len(set(PAYLOADS.values())) == 40


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_the_last_filter_lets_nothing_through_that_a_widget_forgot(payload: str) -> None:
    segments = [Segment("safe"), Segment(payload), Segment("中文 👩‍🚀")]
    cleaned = CleanFilter().apply(segments, Color(0, 0, 0))
    assert cleaned[0] is segments[0] and cleaned[2] is segments[2]
    assert _CONTROL.search(cleaned[1].text) is None and "\r" not in cleaned[1].text
