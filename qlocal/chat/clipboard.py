"""Copy text out of the terminal, by the first way there is: a system tool, the terminal's OSC 52, a file.

Says which one it was: OSC 52 has no answer, so only the user can see whether the terminal took it.
"""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

# Terminals drop longer OSC 52 sequences without a word; xterm's limit is the lowest of the common ones.
MAX_OSC52_BYTES = 74_994
TOOL_TIMEOUT_S = 3.0


async def copy(text: str, write: Callable[[str], bool]) -> str:
    """Copy `text` and return a sentence that says how. `write` sends a sequence to the terminal, False if it cannot."""
    command = system_tool(os.environ)
    if command is not None and await _run(command, text):
        return f"Copied with {command[0]}."
    sequence = osc52(text, in_tmux=bool(os.environ.get("TMUX")))
    if sequence is not None and write(sequence):
        where = "tmux, which needs `set -g allow-passthrough on`" if os.environ.get("TMUX") else "the terminal (OSC 52)"
        return f"Copied through {where}."
    path = await asyncio.to_thread(_to_file, text)
    return f"No clipboard takes it: written to {path}."


def system_tool(environment: Mapping[str, str]) -> list[str] | None:
    """Return the command that takes text on its standard input; None over ssh, where it would be the wrong machine."""
    if environment.get("SSH_CONNECTION"):
        return None
    candidates = []
    if environment.get("WAYLAND_DISPLAY"):
        candidates.append(["wl-copy"])
    if environment.get("DISPLAY"):
        candidates += [["xclip", "-selection", "clipboard"], ["xsel", "--clipboard", "--input"]]
    if environment.get("WSL_DISTRO_NAME"):
        candidates.append(["clip.exe"])
    return next((command for command in candidates if shutil.which(command[0])), None)


def osc52(text: str, *, in_tmux: bool) -> str | None:
    """Return the sequence that sets the terminal's clipboard, or None if the text is too long for it."""
    payload = base64.b64encode(text.encode("utf-8", "replace")).decode("ascii")
    if len(payload) > MAX_OSC52_BYTES:
        return None
    sequence = f"\x1b]52;c;{payload}\x07"
    # tmux hands on what is wrapped for it, with every escape doubled.
    return "\x1bPtmux;" + sequence.replace("\x1b", "\x1b\x1b") + "\x1b\\" if in_tmux else sequence


async def _run(command: list[str], text: str) -> bool:
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=null, stderr=null)
    except OSError:
        return False
    try:
        await asyncio.wait_for(process.communicate(text.encode("utf-8", "replace")), TOOL_TIMEOUT_S)
    except (TimeoutError, BrokenPipeError):
        process.kill()
        return False
    return process.returncode == 0


def _to_file(text: str) -> Path:
    descriptor, name = tempfile.mkstemp(prefix="qlocal-answer-", suffix=".md")
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
        file.write(text)
    return Path(name)
