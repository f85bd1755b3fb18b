"""All keys and commands, by feature, as they are on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from qlocal.chat.features.base import Feature
from qlocal.chat.languages import t
from qlocal.chat.words import HELP_CLOSE, HELP_NOTES, HELP_TITLE

KEY_CELLS = 20
COMMAND_CELLS = 24


class HelpScreen(ModalScreen[None]):
    """Scrolls; any of its keys goes back. keys: by the name of the action."""

    CSS_PATH = "help.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f1,q", "dismiss", "Back", id="help.back"),
    ]

    def __init__(self, features: Sequence[type[Feature]], keys: Mapping[str, str]) -> None:
        super().__init__()
        self._features = features
        self._keys = keys

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help") as box:
            box.border_title = t(HELP_TITLE)
            box.border_subtitle = t(HELP_CLOSE)
            yield Static(self._table(), markup=False)

    def _table(self) -> Content:
        lines = [Content.styled(t(HELP_NOTES), "dim"), Content("")]
        for feature in self._features:
            for action in feature.ACTIONS:
                argument = f" {t(action.argument)}" if action.argument else ""
                command = f"/{action.slash}{argument}"
                keys = self._keys.get(action.name, "")
                lines.append(
                    Content.styled(keys.ljust(KEY_CELLS), "bold")
                    + Content.styled(command.ljust(COMMAND_CELLS) + " ", "$accent")
                    + Content(t(action.help))
                )
            if feature.ACTIONS:
                lines.append(Content(""))
        return Content("\n").join(lines)
