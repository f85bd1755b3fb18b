"""The file of an export: its format by its name, never in the place of another file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from qlocal.chat.exchange.export import SUFFIXES, to_html, to_json, to_markdown
from qlocal.chat.store.records import Conversation, Message
from qlocal.errors import FormatError

MAX_NAME_CHARS = 48


def name_of(conversation: Conversation) -> str:
    """Return a file name for a conversation, from its title."""
    words = re.sub(r"[^\w\-]+", "-", conversation.title).strip("-")[:MAX_NAME_CHARS].strip("-")
    return f"{words or 'conversation'}.md"


def text_of(path: Path, conversation: Conversation, branch: Sequence[Message], messages: Sequence[Message]) -> str:
    """Return what belongs into a file of this name. branch: what is shown; messages: all of them."""
    match path.suffix.lower():
        case ".md":
            return to_markdown(conversation, branch)
        case ".html":
            return to_html(conversation, branch)
        case ".json":
            return to_json([(conversation, messages)])
        case other:
            raise FormatError(
                f"{path.name}: '{other}' is no format of an export", hint=f"One of {', '.join(SUFFIXES)}."
            )


def write_new(path: Path, text: str) -> Path:
    """Write a file that does not exist yet, whole or not at all; FormatError where it cannot be."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)  # unlike a rename it never takes the place of a file that is there
    except FileExistsError as error:
        raise FormatError(f"{path}: is there already", hint="Give another name.") from error
    except OSError as error:
        raise FormatError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path
