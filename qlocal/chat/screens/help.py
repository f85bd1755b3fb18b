"""All keys and commands, by feature, as they are on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from qlocal.chat.features.base import Feature
from qlocal.chat.languages import t
from qlocal.chat.words import HELP_CLOSE, HELP_NOTES, HELP_TITLE


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
            yield Static(t(HELP_NOTES), id="notes", markup=False)
            yield Static(self._table())

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """Keys, command and sentence of every action; an empty row behind every feature."""
        rows: list[tuple[str, str, str]] = []
        for feature in self._features:
            for action in feature.ACTIONS:
                argument = f" {t(action.argument)}" if action.argument else ""
                rows.append((self._keys.get(action.name, ""), f"/{action.slash}{argument}", t(action.help)))
            if feature.ACTIONS:
                rows.append(("", "", ""))
        return rows

    def _table(self) -> Table:
        # Rich's, since its columns know how wide a character is and break the sentences of theirs alone.
        table = Table.grid(padding=(0, 2, 0, 0), expand=True)
        for style, ratio in (("bold", 2), ("", 3), ("", 6)):
            table.add_column(style=style, ratio=ratio, overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return table
