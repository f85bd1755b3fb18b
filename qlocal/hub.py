"""Fetching a checkpoint from the hub into the model folder: resumes, and trusts only bytes that it has hashed itself.

Files gather in `NAME.partial`; the folder gets its name when every file's hash is the one that the hub lists.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any
from urllib.parse import quote

from qlocal import catalog
from qlocal.config import Settings, load_settings
from qlocal.errors import FormatError, PlanError, ServerError, UsageError
from qlocal.strict_json import parse_json_object
from qlocal.transfer import OnBytes, Transfer

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
WANTED = (
    *("*.safetensors", "*.safetensors.index.json", "*.gguf"),
    *("config.json", "generation_config.json", "quantize_config.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
)
"""What is fetched, from the top of a repository: no pickle, no code."""
UNWANTED = ("consolidated*",)
"""The makers' own layout of the same weights."""
MARGIN_BYTES = 256 << 20
CHUNK_BYTES = 8 << 20
SPLIT_GGUF = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")
COMMIT = re.compile(r"[0-9a-f]{40}")
MAX_FILE_BYTES = 1 << 42

OnFile = Callable[[str, int, int], None]
"""Called before each file: its name, bytes that are done, bytes in total."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it. sha256 of large files; of small ones the hub knows git's SHA-1 alone."""

    name: str
    size: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True)
class Listing:
    """The files to fetch, all of one commit."""

    repository: str
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)


def pull(
    model: str,
    *,
    include: str | None = None,
    revision: str | None = None,
    on_file: OnFile = lambda *_: None,
    on_bytes: OnBytes = lambda _: None,
    settings: Settings | None = None,
) -> Path:
    """Fetch a catalogue entry or `owner/name` into the model folder and return its path.

    include: a pattern for the weight files, to choose among the GGUF files of one repository.
    Raises UsageError, ServerError (network), PlanError (disk), FormatError (wrong bytes); what was fetched stays
    for the next attempt.
    """
    settings = settings or load_settings()
    repository, name = _names(model)
    target = settings.home / name
    if target.exists():
        raise UsageError(f"{target} is there already", hint=f"Remove it first with `qlocal models rm {name}`.")
    staging = settings.home / f"{name}.partial"
    with Transfer(settings.hub_endpoint) as transfer, _disk_errors(staging):
        listing = list_files(transfer, repository, revision, include)
        staging.mkdir(parents=True, exist_ok=True)
        _check_free_space(listing, staging)
        _fetch_all(transfer, listing, staging, on_file, on_bytes)
        for left_over in staging.glob("*.incomplete"):
            left_over.unlink()
        staging.rename(target)
    return target


def list_files(transfer: Transfer, repository: str, revision: str | None, include: str | None = None) -> Listing:
    """Ask the hub for a repository's files and return those that a checkpoint needs. ServerError for nonsense."""
    at = f"/revision/{quote(revision, safe='')}" if revision else ""
    answer = transfer.listing(f"/api/models/{repository}{at}?blobs=true", repository)
    try:
        raw = parse_json_object(answer, f"{repository}: the hub's list of files")
    except FormatError as error:
        raise ServerError(error.message) from error
    commit, siblings = raw.get("sha"), raw.get("siblings")
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit) or not isinstance(siblings, list):
        raise ServerError(f"{repository}: the hub's list of files names no commit, or no files")
    remote = [_remote_file(entry, repository) for entry in siblings]
    if len({file.name for file in remote}) != len(remote):
        raise ServerError(f"{repository}: the hub lists a file twice")
    files = _chosen([file for file in remote if _is_wanted(file.name)], repository, include)
    return Listing(repository, commit, tuple(files))


def _remote_file(entry: Any, repository: str) -> RemoteFile:
    """Return one file of the list; what has no size or hash is refused when it is fetched."""
    lfs = entry.get("lfs") if isinstance(entry, Mapping) else None
    name, size = (entry.get("rfilename"), entry.get("size")) if isinstance(entry, Mapping) else (None, None)
    if not isinstance(name, str) or type(size) not in (int, NoneType) or not 0 <= (size or 0) <= MAX_FILE_BYTES:
        raise ServerError(f"{repository}: the hub lists {str(entry)[:80]!r}, expected the name and size of a file")
    sha256 = lfs.get("sha256") if isinstance(lfs, Mapping) else None
    return RemoteFile(name, size or 0, _hexadecimal(sha256, 64), _hexadecimal(entry.get("blobId"), 40))


def _hexadecimal(value: Any, length: int) -> str | None:
    return value if isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{length}}}", value) else None


def verify(path: Path, file: RemoteFile) -> None:
    """Hash a file and compare it with the hub's metadata; FormatError with both hashes when they differ."""
    size = path.stat().st_size
    if size != file.size:
        raise FormatError(f"{file.name}: {size} bytes arrived, the hub lists {file.size}")
    if file.sha256 is not None:
        found, expected, kind = _digest(path, hashlib.sha256()), file.sha256, "SHA-256"
    elif file.git_sha1 is not None:
        blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        found, expected, kind = _digest(path, blob), file.git_sha1, "git SHA-1"
    else:
        raise FormatError(f"{file.name}: the hub lists no hash for it")
    if found != expected:
        raise FormatError(f"{file.name}: {kind} is {found}, the hub lists {expected}", hint="Pull again.")


def _names(model: str) -> tuple[str, str]:
    """Return repository and folder name of MODEL."""
    if REPOSITORY.fullmatch(model):
        return model, model.partition("/")[2]
    entry = catalog.entry(model)
    return entry.repository, entry.name


def _is_wanted(name: str) -> bool:
    return (
        name.isprintable()
        and any(fnmatch.fnmatchcase(name, p) for p in WANTED)
        and not any(fnmatch.fnmatchcase(name, p) for p in UNWANTED)
        and not any(sign in name for sign in "/\\")
    )


def _chosen(files: list[RemoteFile], repository: str, include: str | None) -> list[RemoteFile]:
    """Return the files to fetch: of several GGUF files one, by `include`."""
    weights = [file for file in files if file.name.endswith((".safetensors", ".gguf"))]
    if include is not None:
        weights = [file for file in weights if fnmatch.fnmatchcase(file.name, include)]
    if not weights:
        pattern = f" that match '{include}'" if include else ""
        raise UsageError(f"{repository} has no safetensors or GGUF files{pattern}")
    variants = sorted({SPLIT_GGUF.sub("", file.name) for file in weights if file.name.endswith(".gguf")})
    if len(variants) > 1:
        shown = ", ".join(variants[:12]) + (", ..." if len(variants) > 12 else "")
        raise UsageError(f"{repository} has {len(variants)} GGUF files: {shown}", hint="Choose one with --include.")
    others = [file for file in files if not file.name.endswith((".safetensors", ".gguf"))]
    return [*others, *weights]


def _fetch_all(transfer: Transfer, listing: Listing, staging: Path, on_file: OnFile, on_bytes: OnBytes) -> None:
    done = 0
    for file in listing.files:
        on_file(file.name, done, listing.total_bytes)
        _fetch(transfer, listing, file, staging, on_bytes)
        done += file.size


def _fetch(transfer: Transfer, listing: Listing, file: RemoteFile, staging: Path, on_bytes: OnBytes) -> None:
    """Fetch one file, or what is missing of it, hash it, and only then give it its name."""
    path = staging / file.name
    if path.exists() and _is_right(path, file):
        return
    # Named after its hash: what came of another version is not continued.
    part = staging / f"{file.name}.{(file.sha256 or file.git_sha1 or '')[:16]}.incomplete"
    with part.open("ab") as growing:
        url = f"/{listing.repository}/resolve/{listing.commit}/{file.name}"
        transfer.fetch(url, listing.repository, file.size, growing, on_bytes)
        growing.flush()
        os.fsync(growing.fileno())
    try:
        verify(part, file)
    except FormatError:
        part.unlink()
        raise
    part.replace(path)


def _is_right(path: Path, file: RemoteFile) -> bool:
    """Hash a file of an earlier attempt again: the disk had time to change it."""
    try:
        verify(path, file)
    except FormatError:
        path.unlink()
        return False
    return True


def _check_free_space(listing: Listing, staging: Path) -> None:
    there = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
    needed = max(listing.total_bytes - there, 0) + MARGIN_BYTES
    free = shutil.disk_usage(staging).free
    if needed > free:
        raise PlanError(
            f"{listing.repository} needs {needed:,} more bytes in {staging.parent}, {free:,} are free",
            hint="Make room, or set QLOCAL_HOME to another disk.",
        )


def _digest(path: Path, digest: hashlib._Hash) -> str:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _disk_errors(staging: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PlanError(
                f"the disk of {staging} is full", hint="Make room and pull again: it continues where it stopped."
            ) from error
        raise UsageError(f"{staging} cannot be written: {error}") from error


def total_size(paths: Iterable[Path]) -> int:
    """Return the bytes of all files below `paths`."""
    return sum(
        file.stat().st_size
        for path in paths
        for file in ([path] if path.is_file() else path.rglob("*"))
        if file.is_file()
    )


def remove(name: str, settings: Settings | None = None) -> tuple[Path, int]:
    """Delete a model of the model folder; return where it was and how many bytes that frees."""
    home = (settings or load_settings()).home
    known: Sequence[str] = sorted(catalog.installed(home))
    path = home / name if (home / name).exists() else home / f"{name}.gguf"
    inside = path.exists() and home.resolve() in path.resolve().parents and not name.startswith(".")
    if not inside:
        raise UsageError(f"'{name}' is not in {home}", hint=catalog.nearest(name, list(known)))
    freed = total_size([path])
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)
    return path, freed
