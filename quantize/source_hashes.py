"""The SHA-256 of every file of the source, taken while the layers are read: a large source is not read once more.

A thread hashes a shard when the first layer in it is worked on. It reads the file from front to back, ahead of the
layers, so they find its pages in memory; what is finished goes to the journal, and a restart hashes only the others.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from qlocal.errors import FormatError

PART_BYTES = 8 << 20


class SourceHashes:
    """Hashes of files by name. known: those there are already. To be closed."""

    def __init__(self, files: Iterable[Path], known: Mapping[str, str]) -> None:
        self._files = {path.name: path for path in files}
        self._done = {name: digest for name, digest in known.items() if name in self._files}
        self._asked = set(self._done)
        self._todo: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._work, name="source-hashes", daemon=True)
        self._thread.start()

    def begin(self, files: Iterable[Path]) -> None:
        """Hash these files soon, unless that has been asked for before."""
        for path in files:
            if path.name not in self._asked:
                self._asked.add(path.name)
                self._todo.put(path)

    def done(self) -> dict[str, str]:
        """Return the hashes there are, by file name in the order of the source's files."""
        return {name: self._done[name] for name in self._files if name in self._done}

    def finish(self) -> dict[str, str]:
        """Hash whatever is left and return all. FormatError names a file that cannot be read."""
        self.begin(self._files.values())
        self._todo.put(None)
        self._thread.join()
        if self._error is not None:
            raise FormatError(f"{self._error.filename}: cannot be read: {self._error.strerror}") from self._error
        return self.done()

    def close(self) -> None:
        """Stop at once, in the middle of a file if need be."""
        self._stop.set()
        self._todo.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (path := self._todo.get()) is not None and not self._stop.is_set():
            try:
                digest = self._sha256(path)
            except OSError as error:
                self._error = error
                return
            if digest is not None:
                self._done[path.name] = digest

    def _sha256(self, path: Path) -> str | None:
        """Return the hash of a file, or None when told to stop. Hashing gives the other threads way."""
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while part := file.read(PART_BYTES):
                if self._stop.is_set():
                    return None
                digest.update(part)
        return digest.hexdigest()
