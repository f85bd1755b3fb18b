"""Where results go: assembled in `OUT.partial`, then renamed into place, each in one step.

A marker in the work folder says that moving has begun: a restart after the last rename then only tidies up.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlocal.errors import UsageError
from quantize.recipe import Target
from quantize.report.files import files_beside, write_report
from quantize.state import FILE_NAME, disk_error, sync_folder, write_durably

MARKER = "placing.json"


@dataclass(frozen=True)
class Staged:
    """Writes one result to a path. content(path): folder or file; report: what is written with it."""

    target: Target
    content: Callable[[Path], None]
    report: dict[str, Any]


class Placing:
    """The places of all results of a call. work: the work folder with the journal; key: what identifies the call."""

    def __init__(self, out: Path, targets: tuple[Target, ...], work: Path, key: dict[str, Any]) -> None:
        self._out = out
        self._targets = targets
        self._work = work
        self._key = json.dumps(key, sort_keys=True, default=str)
        self._partial = out.with_name(out.name + ".partial")

    @property
    def beside(self) -> Path:
        """A folder on the disk of the results, for what is made by others and then moved. `tidy` deletes it."""
        return self._partial / "made"

    def is_done(self) -> bool:
        """Whether an earlier call with these arguments has placed everything and was stopped while tidying up."""
        if not self._has_begun():
            return False
        return all(target.path.exists() for target in self._targets) and not (self._partial / "result").exists()

    def _has_begun(self) -> bool:
        """Whether an earlier call with these arguments has written everything and begun to move it into place."""
        marker = self._work / MARKER
        return marker.exists() and json.loads(marker.read_text(encoding="utf-8")) == self._key

    def check(self, overwrite: bool) -> None:
        """Raise UsageError when a place is taken, or cannot be."""
        if not self._out.parent.is_dir():
            raise UsageError(f"--out {self._out}: the folder {self._out.parent} does not exist")
        for target in self._targets:
            is_moved = self._has_begun() and not (self._partial / "result" / target.path.name).exists()
            if not target.path.exists() or is_moved:
                continue
            if not overwrite:
                raise UsageError(f"{target.path} exists already", hint="Choose another --out, or add --overwrite.")
            if not _may_replace(target.path):
                raise UsageError(
                    f"{target.path} is no quantized checkpoint, and is not overwritten", hint="Choose another --out."
                )

    def put(self, staged: list[Staged]) -> None:
        """Write every result beside its place, then move all of them."""
        folder = self._partial / "result"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
            for result in staged:
                _write(result, folder / result.target.path.name)
            write_durably(self._work / MARKER, json.dumps(self._key).encode())
            self._out.mkdir(exist_ok=True) if len(self._targets) > 1 else None
            for result in staged:
                self._move(folder / result.target.path.name, result.target.path)
            folder.rmdir()
        except OSError as error:
            raise disk_error(self._out, error) from error

    def tidy(self) -> None:
        """Delete the work: the journal last but one and the marker last, so that a restart knows where it is."""
        for path in sorted(self._work.glob("*")):
            if path.name not in (FILE_NAME, MARKER):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self._work / FILE_NAME).unlink(missing_ok=True)
        (self._work / MARKER).unlink(missing_ok=True)
        self._work.rmdir()
        shutil.rmtree(self._partial, ignore_errors=True)

    def _move(self, staged: Path, final: Path) -> None:
        for beside in files_beside(staged):
            beside.replace(final.with_name(beside.name))
        if final.is_dir():  # a rename replaces a file, but not a folder that holds something
            old = self._partial / (final.name + ".old")
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
        staged.replace(final)
        sync_folder(final.parent)


def _write(result: Staged, path: Path) -> None:
    result.content(path)
    write_report(path, result.report, with_card=True)


def _may_replace(path: Path) -> bool:
    """Whether --overwrite may delete what lies there: a GGUF file, a quantized checkpoint, or an empty folder."""
    if path.is_file():
        return path.suffix == ".gguf"
    if not any(path.iterdir()):
        return True
    try:
        return "quantization_config" in json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
