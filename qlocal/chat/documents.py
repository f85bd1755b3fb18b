"""Files as text for a conversation: text in UTF-8 as it is, PDF and .docx in a process with limits, anything else
refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from qlocal.errors import FormatError, UsageError

MAX_FILE_BYTES = 32 << 20
MAX_TEXT_CHARS = 4 << 20
INSTALL = "Install them with `pip install 'qlocal[docs]'`"
LIBRARIES = {"pdf": "pypdf", "docx": "docx"}


@dataclass(frozen=True)
class Document:
    """The text of a file. unseen: by kind, how many passages of it a reader of the document would not see."""

    text: str
    unseen: Mapping[str, int] = field(default_factory=dict)


def read_document(path: Path) -> Document:
    """Return the text of a file. UsageError or FormatError names the file and says what is wrong with it."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise UsageError(f"{path} is no file")
        if size > MAX_FILE_BYTES:
            raise UsageError(f"{path} has {size / 2**20:,.1f} MiB, a file may have at most {MAX_FILE_BYTES >> 20} MiB")
        kind = path.suffix.lower().removeprefix(".")
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    document = _guarded(path, kind, data) if kind in LIBRARIES else Document(_plain(path, data))
    if len(document.text) > MAX_TEXT_CHARS:
        raise UsageError(
            f"{path} has {len(document.text):,} characters of text, at most {MAX_TEXT_CHARS:,} can be sent"
        )
    if not document.text.strip():
        raise FormatError(f"{path} has no text in it", hint="A scanned PDF holds pictures of text: recognize it first")
    return document


def _plain(path: Path, data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is no text in UTF-8 (byte {error.start:,}): binary files cannot be sent") from None
    if "\0" in text:
        raise FormatError(f"{path} is binary (it has zero bytes) and cannot be sent")
    return text.replace("\r\n", "\n")


def _guarded(path: Path, kind: str, data: bytes) -> Document:
    """Read it where a document that was made to do harm can do none: without files, network or much memory."""
    if find_spec(LIBRARIES[kind]) is None:
        raise UsageError(f"{path}: .{kind} needs the libraries for documents", hint=INSTALL)
    # Only who takes such a file along needs the guard.
    from qlocal.guard.client import Guard

    with Guard() as guard:
        read = guard.read_document(kind, data, str(path))
    return Document(read["text"], read["unseen"])
