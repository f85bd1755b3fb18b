"""How the chat looks."""

from __future__ import annotations

from typing import ClassVar

from qlocal.chat import words
from qlocal.chat.actions import Action
from qlocal.chat.features.base import Feature
from qlocal.chat.theme import called, theme_after


class Appearance(Feature):
    """Themes: dark, light, high contrast, and the terminal's own colours."""

    ACTIONS: ClassVar = (
        Action("switch_theme", "f9", "Theme", "Dark, light, high contrast, or the terminal's colours", is_shown=False),
    )

    def switch_theme(self) -> None:
        app = self.desk.screen.app
        app.theme = theme_after(app.theme)
        self.desk.say(words.theme_is(called(app.theme)))
