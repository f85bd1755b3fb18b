"""The real program in a real terminal: a pty for a quick look, tmux for a whole evening."""

from __future__ import annotations

import errno
import os
import pty
import re
import select
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.chat.driving import stored
from tests.chat.fake_server import Handler, fake_server

ROOT = Path(__file__).resolve().parents[2]
START = (
    "import sys; from qlocal.chat.app import run_chat; from qlocal.config import ChatOptions;"
    "sys.exit(run_chat(ChatOptions(endpoint=sys.argv[1])))"
)
WAIT_S = 90.0


@pytest.fixture
def url() -> Iterator[str]:
    with fake_server() as found:
        yield found


def environment(home: Path) -> dict[str, str]:
    own = {"QLOCAL_HOME": str(home), "QLOCAL_RUNTIME": str(home / "run")}
    return {**os.environ, **own, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}


class Terminal:
    """A pty of 100 by 30 with the chat in it."""

    def __init__(self, url: str, home: Path, start: str = START) -> None:
        """url: what `start`, a program, is told to talk with."""
        self.output = b""
        self.master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        command = [sys.executable, "-c", start, url]
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment(home))
        os.close(slave)

    def until(self, text: bytes) -> None:
        self.until_so(lambda: text in self.output, repr(text))

    def until_so(self, is_so: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not is_so():
            assert time.monotonic() < deadline, f"{what} did not appear"
            self.read()

    def read(self) -> None:
        if not select.select([self.master], [], [], 0.1)[0]:
            return
        try:
            self.output += os.read(self.master, 1 << 16)
        except OSError as error:
            # How Linux says that nobody has the other end open any more.
            assert error.errno == errno.EIO, error

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def close(self) -> int:
        """Read to the end, so that the program can write its last words; return its exit code."""
        deadline = time.monotonic() + WAIT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read()
        self.process.kill()
        os.close(self.master)
        return self.process.wait()


def test_the_program_answers_in_a_terminal_and_quits_cleanly(url: str, tmp_path: Path) -> None:
    terminal = Terminal(url, tmp_path)
    terminal.until(b"fake-model")
    terminal.press(b"hello\r")
    terminal.until(b"to hello.")
    terminal.press(b"\x11")
    assert terminal.close() == 0


@pytest.mark.parametrize("does", ["waits", "writes an answer"])
def test_a_chat_ends_with_its_terminal_and_keeps_what_came(url: str, tmp_path: Path, does: str) -> None:
    """Textual's own writer dies with the terminal, and would hold up everything for ever."""
    terminal = Terminal(url, tmp_path)
    terminal.until(b"fake-model")
    if does == "writes an answer":
        terminal.press(b"slow\r")
        terminal.until(b"word20")
    os.close(terminal.master)
    assert terminal.process.wait(timeout=WAIT_S) == 129
    if does == "writes an answer":
        assert "word10 " in stored(tmp_path).branch(1)[1].content


@pytest.mark.slow
def test_a_killed_program_has_kept_what_it_received(url: str, tmp_path: Path) -> None:
    terminal = Terminal(url, tmp_path)
    terminal.until(b"fake-model")
    terminal.press(b"slow\r")
    terminal.until(b"word150")
    terminal.process.kill()
    terminal.close()
    again = Terminal(url, tmp_path)
    again.until(b"fake-model")
    again.press(b"\x0f")
    again.until(b"2 messages")
    again.press(b"\r")
    again.until(b"stopped")
    # A piece takes 10 ms, so a second's worth is a hundred of them.
    again.until(b"word50")
    again.press(b"\x11")
    assert again.close() == 0


class Tmux:
    """A tmux server of its own with one window."""

    def __init__(self, folder: Path, command: str, env: dict[str, str]) -> None:
        self._base = ["tmux", "-S", str(folder / "tmux.sock")]
        start = ["-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30", command]
        subprocess.run([*self._base, *start], check=True, env={**env, "LC_ALL": "C.UTF-8"})

    def press(self, *keys: str) -> None:
        subprocess.run([*self._base, "send-keys", *keys], check=True)

    def screen(self) -> str:
        shown = subprocess.run([*self._base, "capture-pane", "-p"], capture_output=True, text=True, check=False)
        return shown.stdout

    def paste(self, text: str) -> None:
        """Paste as a terminal does that knows of bracketed paste."""
        subprocess.run([*self._base, "set-buffer", text], check=True)
        subprocess.run([*self._base, "paste-buffer", "-p"], check=True)

    def resize(self, width: int, height: int) -> None:
        subprocess.run([*self._base, "resize-window", "-x", str(width), "-y", str(height)], check=True)

    def before_cursor(self) -> str:
        """Return what stands in the line of the terminal's cursor up to it: there an input method shows its words."""
        asked = [*self._base, "display-message", "-p", "#{cursor_x} #{cursor_y}"]
        x, y = map(int, subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split())
        text = ""
        for char in self.screen().split("\n")[y]:
            if cell_len(text) >= x:
                break
            text += char
        return text

    def until(self, is_so: Callable[[str], bool]) -> str:
        deadline = time.monotonic() + WAIT_S
        while not is_so(screen := self.screen()):
            assert time.monotonic() < deadline, screen
            time.sleep(0.05)
        return screen

    def is_running(self) -> bool:
        return subprocess.run([*self._base, "has-session"], capture_output=True, check=False).returncode == 0

    def close(self) -> None:
        subprocess.run([*self._base, "kill-server"], capture_output=True, check=False)


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_the_terminals_cursor_is_where_one_types_and_a_paste_is_one_chip(url: str, tmp_path: Path) -> None:
    window = Tmux(tmp_path, shlex.join([sys.executable, "-c", START, url]), environment(tmp_path / "home"))
    try:
        window.until(lambda s: "fake-model · ready" in s)
        for typed in ("ab", "中文", "é한"):
            window.press(typed)
            window.until(lambda _s: window.before_cursor().endswith(typed))  # noqa: B023
        window.press("Left")
        window.until(lambda _s: window.before_cursor().endswith("é"))
        window.press("C-j", "日本")
        window.until(lambda _s: window.before_cursor().endswith("│ 日本"))
        window.press("C-j")
        window.paste("\n".join(f"line {i}" for i in range(30)))
        screen = window.until(lambda s: "[Pasted text #1 +30 lines" in s)
        assert "line 29" not in screen and "▌" not in screen, "a line end in a paste sends nothing"
        window.press("Enter")
        window.until(lambda s: "line 29" in s and "中文 ok" in s)
    finally:
        window.close()
    assert len(Handler.requests) == 1
    assert Handler.requests[0]["messages"][-1]["content"].endswith("\nline 28\nline 29한")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_a_window_is_resized_while_an_answer_comes(url: str, tmp_path: Path) -> None:
    window = Tmux(tmp_path, shlex.join([sys.executable, "-c", START, url]), environment(tmp_path / "home"))
    try:
        window.until(lambda s: "fake-model · ready" in s)
        window.press("slow", "Enter")
        window.until(lambda s: "word20 " in s)
        for width, height in ((60, 15), (160, 50), (60, 15), (80, 24), (60, 15)):
            before = int(re.findall(r"word(\d+)", window.screen())[-1])
            window.resize(width, height)

            def fits(screen: str) -> bool:
                words = [int(number) for number in re.findall(r"word(\d+)", screen)][:-1]
                lines = screen.rstrip("\n").split("\n")
                frame = next((line for line in lines if line.startswith("╭")), "")
                going_on = bool(words) and words[-1] > before + 5 and words == list(range(words[0], words[-1] + 1))  # noqa: B023
                return going_on and cell_len(frame) == width and len(lines) == height  # noqa: B023

            window.until(fits)
        window.press("Escape")
        window.until(lambda s: "■ stopped" in s)
    finally:
        window.close()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_an_evening_in_tmux(url: str, tmp_path: Path) -> None:
    """Two turns, stop, regenerate, quit, reopen: everything is there."""
    command = shlex.join([sys.executable, "-c", START, url])
    window = Tmux(tmp_path, command, environment(tmp_path / "home"))
    try:
        window.until(lambda s: "fake-model · ready" in s)
        window.press("one", "C-j", "more", "Enter")
        window.until(lambda s: "▌ one" in s and "▌ more" in s and "Answer 1 to one" in s)
        window.press("slow", "Enter")
        window.until(lambda s: "word20 " in s)
        started = time.monotonic()
        window.press("Escape")
        window.until(lambda s: "■ stopped" in s)
        assert time.monotonic() - started < 2.0
        window.press("C-r")
        window.until(lambda s: "word5 " in s and "■ stopped" not in s)
        window.press("Escape")
        window.until(lambda s: "‹2/2›" in s and "■ stopped" in s)
        window.press("C-q")
        deadline = time.monotonic() + WAIT_S
        while window.is_running() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not window.is_running()
    finally:
        window.close()
    assert len(Handler.requests) == 3
    window = Tmux(tmp_path, command, environment(tmp_path / "home"))
    try:
        window.until(lambda s: "fake-model · ready" in s)
        window.press("C-o")
        window.until(lambda s: "one" in s and "5 messages" in s)
        window.press("Enter")
        window.until(lambda s: "‹2/2›" in s and "■ stopped" in s)
        window.press("PageUp")
        window.until(lambda s: "▌ one" in s)
        window.press("C-q")
    finally:
        window.close()


def test_a_terminal_that_goes_away_takes_the_chat_along(url: str, tmp_path: Path) -> None:
    terminal = Terminal(url, tmp_path)
    terminal.until(b"qlocal")
    os.close(terminal.master)
    assert terminal.process.wait(WAIT_S) != 0
