"""Running a program by its list of arguments, after a yes: no shell in between, a clean environment, limits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from qlocal.chat.tools.base import MAX_RESULT_BYTES, ToolError, limited

TIMEOUT_S = 30.0
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "USER")


class Shell:
    """Runs one program. It can do whatever the user can: the yes is the only fence."""

    name: ClassVar = "shell"
    description: ClassVar = (
        'Run a program by its list of arguments, for example ["ls", "-l"]. There is no shell: no pipes, no variables. '
        "The user is asked before."
    )
    parameters: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {"argv": {"type": "array", "items": {"type": "string"}, "minItems": 1}},
        "required": ["argv"],
    }
    needs_yes: ClassVar = True

    def __init__(self, folder: Path, timeout_s: float = TIMEOUT_S) -> None:
        self._folder, self._timeout_s = folder, timeout_s

    async def run(self, arguments: Mapping[str, Any]) -> str:
        argv = arguments.get("argv")
        if not isinstance(argv, list) or not argv or not all(isinstance(one, str) and "\0" not in one for one in argv):
            raise ToolError("argv is no list of texts")
        environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                cwd=self._folder,
                env=environment,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise ToolError(f"{argv[0][:100]} cannot be run: {error}") from error
        try:
            async with asyncio.timeout(self._timeout_s):
                output = await _output(process)
                code = await process.wait()
        except TimeoutError as error:
            raise ToolError(f"{argv[0][:100]} was ended after {self._timeout_s:g} s") from error
        finally:
            await _end(process)
        return limited(output) if code == 0 else f"exit code {code}\n{limited(output)}"


async def _output(process: asyncio.subprocess.Process) -> bytes:
    """Read up to one byte more than the limit; the program is ended there."""
    assert process.stdout is not None, "it was made a pipe"
    parts: list[bytes] = []
    size = 0
    while size <= MAX_RESULT_BYTES and (part := await process.stdout.read(1 << 16)):
        parts.append(part)
        size += len(part)
    if size > MAX_RESULT_BYTES:
        _kill(process)
    return b"".join(parts)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the program and all that it started in its session."""
    _kill(process)
    await process.wait()


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
