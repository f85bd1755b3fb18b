"""What the transcript shows of a message, and in which styles. No screen, no store."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

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
    is_quiet: bool = False
    """Whether it is drawn as what matters less: a message that is no longer sent."""


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

    @property
    def quiet(self) -> Look:
        """The same for a message that is no longer sent: all of it in the quieter colour."""
        muted = self.palette.muted
        return replace(
            self, palette=_all_in(self.palette, muted), thought=_all_in(self.thought, muted), head=muted,
            user=self.user + muted, user_bar=self.user_bar + muted,
        )  # fmt: skip


def _all_in(palette: Palette, ink: Style) -> Palette:
    """Return a palette in one colour; backgrounds, bold and italics stay."""
    return Palette(*(getattr(palette, field.name) + ink for field in fields(palette)))
