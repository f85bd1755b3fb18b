"""An hour with the real program: tmux, the real server, and a real model; what a user does from the first start on."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chat.driving import stored
from tests.chat.test_terminal import Tmux
from tests.real_models import real_model

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]
ROOT = Path(__file__).resolve().parents[2]
MODEL = "smollm2-135m.gguf"
LOAD_S = 120.0


class Window(Tmux):
    """The chat in tmux; what is waited for may take as long as a model takes."""

    def until(self, is_so: Callable[[str], bool]) -> str:
        deadline = time.monotonic() + LOAD_S
        while not is_so(screen := self.screen()):
            assert time.monotonic() < deadline, screen
            assert self.is_running(), "the chat has ended"
            assert "· failed ·" not in screen, screen
            time.sleep(0.1)
        return screen

    def say(self, text: str) -> None:
        self.press("-l", text)
        self.until(lambda screen: text[-8:] in screen.rpartition("╭")[2])
        self.press("Enter")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "home"
    yield folder
    subprocess.run([sys.executable, "-m", "qlocal.cli", "stop"], cwd=ROOT, env=environment(folder), check=False)


def environment(home: Path) -> dict[str, str]:
    own = {name: str(home / name.lower()) for name in ("QLOCAL_CONFIG", "QLOCAL_CACHE", "XDG_RUNTIME_DIR")}
    home.mkdir(exist_ok=True)
    (home / "xdg_runtime_dir").mkdir(exist_ok=True, mode=0o700)
    return {**os.environ, **own, "QLOCAL_HOME": str(home), "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}


def opened(folder: Path, home: Path) -> Window:
    folder.mkdir()
    command = [sys.executable, "-m", "qlocal.cli", "chat", str(real_model(MODEL)), "--context", "2048"]
    window = Window(folder, shlex.join(command), environment(home))
    window.until(lambda screen: "· ready" in screen)
    return window


def ended(window: Window) -> None:
    window.press("C-q")
    deadline = time.monotonic() + LOAD_S
    while window.is_running():
        assert time.monotonic() < deadline, window.screen()
        time.sleep(0.1)


def test_an_hour_with_a_real_model(tmp_path: Path, home: Path) -> None:
    page = tmp_path / "page.md"
    window = opened(tmp_path / "first", home)
    try:
        window.say("Write a very long story about a lighthouse keeper and the sea.")
        window.until(is_writing)
        window.press("Escape")
        window.until(lambda screen: "■ stopped" in screen)
        window.press("C-r")
        window.until(lambda screen: is_writing(screen) and "■ stopped" not in screen)
        window.press("Escape")
        window.until(lambda screen: "■ stopped" in screen and "‹2/2›" in screen)
        window.press("M-Left")
        window.until(lambda screen: "‹1/2›" in screen)
        window.say("/sampling temperature=0 max_tokens=24")
        window.until(lambda screen: "max_tokens 24" in screen)
        window.say("Say yes.")
        window.until(lambda screen: re.search(r"▌ Say yes\.[^▌]*\d+ tokens · [\d.]+ tok/s", screen) is not None)
        window.press("C-f")
        window.until(lambda screen: "Search" in screen)
        window.press("-l", "lighthouse")
        window.until(lambda screen: "You" in screen and screen.count("lighthouse") >= 2)
        window.press("Enter")
        window.until(lambda screen: "▌ Write a very long story" in screen)
        window.say(f"/export {page}")
        window.until(lambda screen: "Written to" in screen)
        ended(window)
    finally:
        window.close()
    assert "lighthouse" in page.read_text(encoding="utf-8")
    history = stored(home)
    conversation = history.conversations()[0]
    assert len(history.messages(conversation.conversation_id)) == 5
    window = opened(tmp_path / "second", home)
    try:
        window.press("C-o")
        window.until(lambda screen: "messages" in screen and "lighthouse keeper" in screen)
        window.press("Enter")
        window.until(lambda screen: "▌ Say yes." in screen)
        ended(window)
    finally:
        window.close()


def is_writing(screen: str) -> bool:
    """Whether the status line tells a speed: half a second after the first token at the latest."""
    return re.search(r"ready · [\d.]+ tok/s", screen) is not None
