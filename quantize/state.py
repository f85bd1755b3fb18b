"""The journal: what is finished, and of which source, options, calibration and versions. It alone decides a restart.

Everything is written beside, flushed and renamed: whenever the machine stops, the journal names files that are whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qlocal.errors import PlanError, ResumeError

FILE_NAME = "journal.json"
VERSION = 2
WHOLE_HASH_BYTES = 4 << 30
"""Sources up to this size are hashed whole; of larger ones sizes, times and evenly taken samples."""
SAMPLE_BYTES = 1 << 20
SAMPLES_PER_FILE = 16
SAMPLED = "sampled:"


@dataclass(frozen=True)
class WorkFile:
    """A finished file in the work folder."""

    name: str
    num_bytes: int
    sha256: str


@dataclass
class Unit:
    """A finished unit of work: its file and losses by target. seconds: how long it took."""

    files: dict[str, WorkFile]
    losses: dict[str, dict[str, float]]
    notes: list[str]
    seconds: float


@dataclass
class Journal:
    """What `FILE_NAME` holds. threads: sums are cut by them, so a restart takes as many. units: in the order in which
    they were finished. hidden: the files with the inputs of units, when calibration is used: of the next one to
    capture, and of those captured that are not finished. source_sha256: of the source's files read so far, by name.
    choice: what --target-size has chosen, as JSON."""

    folder: Path
    fingerprint: dict[str, Any]
    threads: int
    units: dict[str, Unit] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)
    source_sha256: dict[str, str] = field(default_factory=dict)
    choice: dict[str, Any] | None = None

    def save(self) -> None:
        """Write the journal through to the disk in one step."""
        content = {
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "threads": self.threads,
            "hidden": self.hidden,
            "source_sha256": self.source_sha256,
            "choice": self.choice,
            "units": {name: asdict(unit) for name, unit in self.units.items()},
        }
        write_durably(self.folder / FILE_NAME, json.dumps(content, indent=1, sort_keys=True).encode())

    def add_hidden(self, name: str) -> None:
        """Remember the inputs of a unit, which are on the disk."""
        self.hidden.append(name)
        self.save()

    def finish(self, unit: str, result: Unit, hidden: str) -> None:
        """Remember a unit whose files are on the disk; only then drop its inputs, the file `hidden` if there is one."""
        self.units[unit] = result
        self.hidden = [name for name in self.hidden if name != hidden]
        self.save()
        (self.folder / hidden).unlink(missing_ok=True)

    def drop_leftovers(self) -> None:
        """Delete what an interrupted run has left half written, or dropped and not yet deleted."""
        for path in (*self.folder.glob("*.tmp"), *self.folder.glob("hidden-*.bin")):
            if path.name not in self.hidden:
                path.unlink()


def open_journal(folder: Path, fingerprint: dict[str, Any], threads: int) -> Journal:
    """Return the journal of `folder`, or a new one with `threads`. ResumeError says what differs."""
    path = folder / FILE_NAME
    plain = json.loads(json.dumps(fingerprint, default=str))
    if not path.exists():
        return Journal(folder, plain, threads)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        units = {name: _unit(values) for name, values in content["units"].items()}
        found, version = content["fingerprint"], content["version"]
        hashes = dict(content.get("source_sha256", {}))
        journal = Journal(folder, plain, int(content["threads"]), units, list(content["hidden"]), hashes)
        journal.choice = content.get("choice")
    except (ValueError, KeyError, TypeError) as error:
        raise ResumeError(f"{path}: is no journal of quantize", hint=_start_over(folder)) from error
    if version != VERSION:
        raise ResumeError(
            f"{path}: was written by another version ({version}, not {VERSION})", hint=_start_over(folder)
        )
    differences = _differences(found, plain)
    if differences:
        raise ResumeError(
            f"{folder}: holds an unfinished run with other arguments: {'; '.join(differences[:6])}",
            hint=f"Repeat those arguments to continue it. {_start_over(folder)}",
        )
    _check_files(journal)
    return journal


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create `folder` and keep every other process out of it; what is still empty at the end is removed again."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ResumeError(f"{folder}: another quantize is at work there", hint="Wait for it, or stop it.") from error
    finally:
        os.close(descriptor)
        _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    for path in (folder, folder.parent):
        if path.is_dir() and not any(path.iterdir()) and (path == folder or path.suffix == ".partial"):
            path.rmdir()


def source_fingerprint(files: Sequence[Path]) -> dict[str, str]:
    """Return a hash of every file of the source: of its whole content, or of samples where that would take minutes."""
    whole = sum(path.stat().st_size for path in files) <= WHOLE_HASH_BYTES
    return {path.name: (file_sha256(path) if whole else _sampled_sha256(path)) for path in files}


def whole_hashes(fingerprint: Mapping[str, str]) -> dict[str, str]:
    """Return those hashes of a source's fingerprint that are of whole files."""
    return {name: digest for name, digest in fingerprint.items() if not digest.startswith(SAMPLED)}


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_durably(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step that survives a crash. PlanError when the disk is full."""
    beside = path.with_name(path.name + ".tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise disk_error(path, error) from error


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder, after a rename."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(path: Path, error: OSError) -> PlanError:
    return PlanError(
        f"{path}: cannot be written: {error.strerror}",
        hint="Free space there, or choose another place with --out and --work-dir; finished layers are kept.",
    )


def _sampled_sha256(path: Path) -> str:
    status = path.stat()
    digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
    with path.open("rb") as file:
        for index in range(SAMPLES_PER_FILE):
            file.seek(index * max(status.st_size - SAMPLE_BYTES, 0) // (SAMPLES_PER_FILE - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return SAMPLED + digest.hexdigest()


def _unit(values: dict[str, Any]) -> Unit:
    files = {target: WorkFile(**file) for target, file in values["files"].items()}
    return Unit(files, values["losses"], values["notes"], values["seconds"])


def _check_files(journal: Journal) -> None:
    for unit in journal.units.values():
        for file in unit.files.values():
            path = journal.folder / file.name
            if not path.exists() or path.stat().st_size != file.num_bytes:
                raise ResumeError(f"{path}: is missing or damaged", hint=_start_over(journal.folder))
    for name in journal.hidden:
        if not (journal.folder / name).exists():
            raise ResumeError(f"{journal.folder / name}: is missing", hint=_start_over(journal.folder))


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return `name: was X, is Y` for every value that differs, at any depth."""
    differences = []
    for key in sorted({*found, *wanted}):
        before, now = found.get(key), wanted.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            differences += _differences(before, now, f"{prefix}{key} ")
        elif before != now:
            differences.append(f"{prefix}{key} was {_shown(before)}, is {_shown(now)}")
    return differences


def _shown(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value)
    return text if len(text) <= 24 else text[:20] + '..."'


def _start_over(folder: Path) -> str:
    return f"To start over, delete {folder}."
