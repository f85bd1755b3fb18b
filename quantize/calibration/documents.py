"""Calibration texts: the shipped set, or the user's files, as documents and conversations. No tokenizer, no torch.

Plain files hold documents separated by a line `=== next document ===`; `.jsonl` files hold one conversation a line,
`{"messages": [{"role", "content"}, ...]}`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlocal.errors import UsageError

SEPARATOR = "\n=== next document ===\n"
SHIPPED = Path(__file__).parent / "texts"
MAX_FILE_BYTES = 256 << 20
_HINT = '--calibration takes UTF-8 text, or .jsonl with one {"messages": [...]} a line.'

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Document:
    """A text, or a conversation for the chat template; exactly one is given."""

    text: str | None = None
    messages: Messages | None = None


def load_documents(files: Sequence[Path]) -> list[Document]:
    """Return the documents of `files`, or of the shipped set when there are none, in file order."""
    paths = files or sorted(p for p in SHIPPED.iterdir() if p.suffix in (".txt", ".jsonl"))
    documents = [document for path in paths for document in _read(path)]
    if not documents:
        raise UsageError("the calibration files hold no text", hint=_HINT)
    return documents


def joined_text(files: Sequence[Path]) -> str:
    """Return the texts of all files behind each other, as they are."""
    text = "".join(read_text(path) for path in files)
    if not text.strip():
        raise UsageError("the calibration files hold no text", hint=_HINT)
    return text


def read_text(path: Path) -> str:
    """Return the content of a text file; UsageError names the file and what is wrong with it."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"{path}: has {path.stat().st_size} bytes, at most {MAX_FILE_BYTES} are read", hint=_HINT)
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", hint=_HINT) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 at byte {error.start}", hint=_HINT) from error


def _read(path: Path) -> list[Document]:
    text = read_text(path)
    if path.suffix != ".jsonl":
        return [Document(text=part) for part in text.split(SEPARATOR) if part.strip()]
    lines = enumerate(text.split("\n"), start=1)
    return [Document(messages=_messages(line, f"{path}: line {number}")) for number, line in lines if line.strip()]


def _messages(line: str, where: str) -> Messages:
    try:
        entry = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"{where}: is not JSON: {error}", hint=_HINT) from error
    messages = entry.get("messages") if isinstance(entry, dict) else None
    if not isinstance(messages, list) or not messages:
        raise UsageError(f"{where}: has no list of messages", hint=_HINT)
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise UsageError(f"{where}: a message without role and content as texts", hint=_HINT)
    return messages
