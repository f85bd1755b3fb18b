"""What an action is: one thing a user can do, however it is asked for: by key, command palette or slash command."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.binding import Binding

if TYPE_CHECKING:
    from qlocal.chat.library import Shelf


@dataclass(frozen=True)
class Action:
    """One action. `name` is that of the feature's method, and stays the same for ever: key maps refer to it.

    keys: those it has by default, empty for none; label: for the footer; help: a sentence for palette and help.
    is_shown puts it into the footer. argument: what may stand behind it as a slash command; the method is given it,
    an empty text for nothing. shelf: where the argument is a name of, or may be one; it is completed then.
    """

    name: str
    keys: str
    label: str
    help: str
    is_shown: bool = True
    argument: str = ""
    shelf: Shelf | None = None

    @property
    def binding_id(self) -> str:
        return f"chat.{self.name}"

    @property
    def slash(self) -> str:
        """The name as a slash command."""
        return self.name.replace("_", "-")

    def binding(self) -> Binding:
        # Priority: the prompt has the focus and would take some of these keys for editing.
        return Binding(
            self.keys,
            f"do('{self.name}')",
            self.label,
            show=self.is_shown,
            priority=True,
            id=self.binding_id,
            tooltip=self.help,
        )


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return a hint with the known name that is nearest, None where none is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"Did you mean '{found[0]}'?" if found else None
