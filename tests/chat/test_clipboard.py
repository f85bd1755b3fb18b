"""The copy key tries a system tool, then the terminal, then a file, and says which."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest

from qlocal.chat import clipboard


def copy(text: str, *, terminal: bool) -> tuple[str, list[str]]:
    written: list[str] = []

    def write(sequence: str) -> bool:
        written.append(sequence)
        return terminal

    return asyncio.run(clipboard.copy(text, write)), written


@pytest.fixture(autouse=True)
def _no_desktop(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME", "TMUX", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)


def test_the_terminal_gets_the_text_as_osc_52() -> None:
    said, written = copy("héllo", terminal=True)
    assert "OSC 52" in said
    assert written == ["\x1b]52;c;" + base64.b64encode("héllo".encode()).decode() + "\x07"]


def test_inside_tmux_the_sequence_is_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMUX", "/tmp/tmux")
    said, written = copy("x", terminal=True)
    assert "tmux" in said and written == ["\x1bPtmux;\x1b\x1b]52;c;eA==\x07\x1b\\"]


@pytest.mark.parametrize(("text", "terminal"), [("short", False), ("x" * 100_000, True)])
def test_what_the_terminal_cannot_take_goes_to_a_file(
    text: str, terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said, _ = copy(text, terminal=terminal)
    (path,) = tmp_path.iterdir()
    assert str(path) in said and path.read_text() == text


def test_a_system_tool_is_used_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "xclip"
    tool.write_text(f"#!/bin/sh\ncat > {tmp_path}/clipboard\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("DISPLAY", ":0")
    said, written = copy("text", terminal=True)
    assert said == "Copied with xclip." and written == []
    assert (tmp_path / "clipboard").read_text() == "text"


def test_over_ssh_no_tool_of_the_wrong_machine_is_used() -> None:
    environment = {"SSH_CONNECTION": "a b", "DISPLAY": ":0", "WAYLAND_DISPLAY": "w"}
    assert clipboard.system_tool(environment) is None
