"""What an action is: one thing a user can do, however it is asked for: by key, command palette or slash command."""

from __future__ import annotations

from dataclasses import dataclass

from textual.binding import Binding


@dataclass(frozen=True)
class Action:
    """One action. `name` is that of the feature's method, and stays the same for ever: key maps refer to it.

    keys: those it has by default, empty for none; label: for the footer; help: a sentence for palette and help.
    is_shown puts it into the footer.
    """

    name: str
    keys: str
    label: str
    help: str
    is_shown: bool = True

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
