"""Finding what there is to do: slash commands, the palette, and the map of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len

from qlocal.chat import words
from qlocal.chat.actions import Action, closest
from qlocal.chat.features.base import Feature
from qlocal.chat.languages import t

if TYPE_CHECKING:
    from qlocal.chat.screens.chat import ChatScreen

PREFIX = "/"


class Commands(Feature):
    """Every action by name, in the prompt or in the palette."""

    ACTIONS: ClassVar = (
        Action("help", "f1", "Help", "Show all keys and commands"),
        Action("palette", "ctrl+p", "Commands", "Search all commands", is_shown=False),
    )

    def help(self) -> None:
        from qlocal.chat.features import FEATURES
        from qlocal.chat.screens.help import HelpScreen

        self.desk.screen.app.push_screen(HelpScreen(FEATURES, self._keys()))

    def palette(self) -> None:
        self.desk.screen.app.action_command_palette()

    def take(self, text: str) -> bool:
        """Do what a prompt asks for that is a command: `/name` or `/name text`. Return whether it was one.

        An unknown name is a mistake and is said: two slashes begin a message with one.
        """
        if not text.startswith(PREFIX) or text.startswith(2 * PREFIX) or "\n" in text.strip():
            return False
        name, _, argument = text.strip().removeprefix(PREFIX).partition(" ")
        if not name or PREFIX in name:  # a path, or a slash alone
            return False
        screen = self._chat
        action = next((action for action in screen.actions if action.slash == name.replace("_", "-")), None)
        if action is None:
            hint = closest(name, (known.slash for known in screen.actions))
            self.desk.warn(words.no_such_command(name, hint))
            return True
        if argument and not action.argument:
            self.desk.warn(words.takes_no_text(action.slash))
            return True
        self.desk.prompt.forget()
        screen.do(action.name, argument.strip())
        return True

    def footer(self, max_cells: int) -> str:
        """Return the keys of the actions that are shown, as many as there is room for."""
        screen = self._chat
        keys: dict[str, str] = {}
        for active in screen.active_bindings.values():
            keys.setdefault(active.binding.id or "", screen.app.get_key_display(active.binding))
        text = ""
        for action in screen.actions:
            if not action.is_shown or action.binding_id not in keys:
                continue
            longer = text + (" · " if text else "") + f"{keys[action.binding_id]} {t(action.label)}"
            if cell_len(longer) > max_cells:
                break
            text = longer
        return text

    def _keys(self) -> dict[str, str]:
        """Return the keys of every action by its name, as they are now."""
        active = self._chat.active_bindings
        keys: dict[str, list[str]] = {}
        for key, binding in active.items():
            if binding.binding.id is not None:
                keys.setdefault(binding.binding.id.removeprefix("chat."), []).append(key)
        return {name: ", ".join(found) for name, found in keys.items()}

    @property
    def _chat(self) -> ChatScreen:
        screen: ChatScreen = self.desk.screen  # type: ignore[assignment]
        return screen
