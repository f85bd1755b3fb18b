"""What the transcript shows of a message, and in which styles. No screen, no store."""

from __future__ import annotations

from dataclasses import dataclass

from rich.style import Style

from qlocal.chat.markdown.palette import Palette


@dataclass(frozen=True)
class Entry:
    """One message as the transcript shows it. `note` is one sentence in the colour of a warning."""

    entry_id: int
    is_user: bool
    text: str
    head: str
    detail: str = ""
    """Stands behind the head, in a quieter colour."""
    note: str | None = None
    is_streaming: bool = False


@dataclass(frozen=True)
class Look:
    """The styles of a transcript."""

    palette: Palette
    thought: Palette
    """The same, quieter: for what a model thinks before it answers."""
    base: Style
    """Text and background where nothing else is said."""
    user: Style
    """Background and text of what the user wrote."""
    user_bar: Style
    head: Style
    note: Style
    cursor: Style
    """The mark beside the block that the cursor is on."""
