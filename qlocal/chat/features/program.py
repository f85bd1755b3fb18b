"""The program as a whole."""

from __future__ import annotations

from typing import ClassVar

from qlocal.chat.actions import Action
from qlocal.chat.features.base import Feature


class Program(Feature):
    """Leaving it."""

    ACTIONS: ClassVar = (Action("quit", "ctrl+q", "Quit", "Quit; everything is saved"),)

    def quit(self) -> None:
        self.desk.screen.app.exit(0)
