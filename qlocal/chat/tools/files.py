"""Searching and reading files in folders that the user allows. No symlink is followed, and nothing leads out of them.

A path is opened a folder at a time with O_NOFOLLOW from a descriptor of the allowed one, so that what is swapped for a
link in between is refused by the kernel and not by a look that came too early.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from qlocal.chat.tools.base import MAX_RESULT_BYTES, ToolError, limited, text_argument

MAX_FILES = 20_000
MAX_HITS = 200
MAX_SEARCHED_BYTES = 2 << 20
"""Of one file; a longer one is searched so far."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a pipe would wait for a writer for ever; that it is no file is seen after.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FileSearch:
    """Finds lines with a text in files, and reads one file."""

    name: ClassVar = "files"
    description: ClassVar = (
        "Look into the folders that the user allows. With `text`, return the lines of files that hold it; with `path`, "
        "return that file or what is in that folder; without both, name the folders."
    )
    parameters: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {
            "text": {"type": "string", "description": "what to search for, in any case"},
            "path": {"type": "string", "description": "FOLDER/path/to/file as a search names it"},
        },
    }
    needs_yes: ClassVar = True

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = {_name(folder, folders): folder for folder in folders}

    async def run(self, arguments: Mapping[str, Any]) -> str:
        text, path = text_argument(arguments, "text", ""), text_argument(arguments, "path", "")
        return await asyncio.to_thread(self._run, text, path)

    def _run(self, text: str, path: str) -> str:
        if text:
            return "\n".join(self._search(text.lower(), path)) or "nothing found"
        return self._read(path) if path else "\n".join(self._folders)

    def _read(self, path: str) -> str:
        with ExitStack() as opened:
            descriptor = self._open(path, opened)
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                return "\n".join(sorted(entry.name for entry in os.scandir(descriptor))) or "the folder is empty"
            return limited(_read(descriptor, MAX_RESULT_BYTES + 1))

    def _search(self, text: str, below: str) -> Iterator[str]:
        hits = 0
        for name, data in self._files(below):
            for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), start=1):
                if text in line.lower():
                    yield f"{name}:{number}: {line.strip()[:300]}"
                    hits += 1
                    if hits == MAX_HITS:
                        yield f"[cut: only the first {MAX_HITS} lines]"
                        return

    def _files(self, below: str) -> Iterator[tuple[str, bytes]]:
        """Yield every file below a path, or below all folders, with its beginning; binary ones are left out."""
        count = 0
        for start in [below] if below else list(self._folders):
            with ExitStack() as opened:
                descriptor = self._open(start, opened)
                if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                    yield start, _read(descriptor, MAX_SEARCHED_BYTES)
                    continue
                for root, folders, files, folder in os.fwalk(dir_fd=descriptor, follow_symlinks=False):
                    folders[:] = sorted(name for name in folders if not name.startswith("."))
                    for file in sorted(files):
                        count += 1
                        if count > MAX_FILES:
                            return
                        data = _file_in(folder, file)
                        if data is not None and b"\0" not in data[:4096]:
                            inner = Path(root, file).as_posix()
                            yield f"{start}/{inner}", data

    def _open(self, path: str, opened: ExitStack) -> int:
        """Return a descriptor of a file or folder below an allowed one. ToolError for everything else."""
        first, *rest = path.strip("/").split("/")
        folder = self._folders.get(first)
        if folder is None:
            raise ToolError(f"'{first[:100]}' is no allowed folder; there are: {', '.join(self._folders) or 'none'}")
        if any(part in ("", ".", "..") or "\0" in part for part in rest):
            raise ToolError(f"'{path[:200]}' is not a plain path below {first}")
        try:
            # The allowed folder itself may be a link: the user named it.
            at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, at)
            for part in rest[:-1]:
                at = os.open(part, _FOLDER, dir_fd=at)
                opened.callback(os.close, at)
            if rest:
                at = os.open(rest[-1], _FILE, dir_fd=at)
                opened.callback(os.close, at)
        except OSError as error:
            raise ToolError(f"'{path[:200]}' cannot be opened: {error.strerror}; links are not followed") from error
        if not stat.S_ISREG(mode := os.fstat(at).st_mode) and not stat.S_ISDIR(mode):
            raise ToolError(f"'{path[:200]}' is neither a file nor a folder")
        return at


def _file_in(folder: int, name: str) -> bytes | None:
    """Return the beginning of a file; None for links, pipes and what cannot be read."""
    try:
        descriptor = os.open(name, _FILE, dir_fd=folder)
    except OSError:
        return None
    try:
        return _read(descriptor, MAX_SEARCHED_BYTES) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _read(descriptor: int, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while size < limit and (part := os.read(descriptor, min(1 << 20, limit - size))):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _name(folder: Path, folders: Sequence[Path]) -> str:
    """Return what a folder is called: its last part, with a number where two are alike."""
    same = [one for one in folders if one.name == folder.name]
    return folder.name if len(same) == 1 else f"{folder.name}-{same.index(folder) + 1}"
