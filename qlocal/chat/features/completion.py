"""Completing what is typed: slash commands at the beginning, names behind them, files behind an @."""

from __future__ import annotations

import re
from pathlib import Path

from qlocal.chat.features.base import Feature
from qlocal.chat.features.commands import PREFIX
from qlocal.chat.features.drafting import Drafting
from qlocal.chat.languages import t
from qlocal.chat.widgets.suggestions import MAX_SHOWN, Suggestion, Suggestions

AT = "@"
AT_FILE = re.compile(r"(?<!\S)@\S*$")


class Completion(Feature):
    """Keeps the list over the prompt in step with the text."""

    _typed = ""
    _refused = ""
    """What was typed when the list was closed by Esc: it stays closed until that changes."""

    def on_typed(self) -> None:
        """Offer what the text at the cursor could become."""
        before = self.desk.prompt.text_before_cursor()
        found: list[Suggestion] = []
        self._typed = ""
        if before == self.desk.prompt.text and before.startswith(PREFIX):
            self._typed, found = before, self._commands(before.removeprefix(PREFIX))
        elif (place := AT_FILE.search(before)) is not None:
            self._typed, found = place[0], files_like(place[0].removeprefix(AT))
        if self._typed == self._refused:
            found = []
        else:
            self._refused = ""
        # Behind a command that is whole, Enter is its own until a name is begun or marked.
        self._offer(found, is_marked=not self._typed.endswith(" "))

    def on_key(self, key: str) -> None:
        """A key that the prompt has left to the list."""
        match key:
            case "up" | "down":
                self._list.move(-1 if key == "up" else 1)
            case "escape":
                self._refused = self._typed
                self._offer([])
            case "enter" if (marked := self._list.marked) is None or marked.text.rstrip() == self._typed:
                self.desk.prompt.submit()
            case _:
                self._list.take()

    def on_taken(self, text: str) -> None:
        """Put a suggestion into the text."""
        is_file = text.startswith(AT) and not text.endswith("/")
        self.desk.prompt.replace_before_cursor(len(self._typed), "" if is_file else text)
        if is_file:
            self.desk.feature(Drafting).attach(text.removeprefix(AT))
        if text.startswith(AT) and not is_file:
            return  # a folder: its files come next
        self._refused = text.rstrip()
        self._offer([])

    def _offer(self, found: list[Suggestion], *, is_marked: bool = True) -> None:
        self._list.offer(found, is_marked=is_marked)
        self.desk.prompt.completed_text = self.desk.prompt.text if self._list.is_open else None

    @property
    def _list(self) -> Suggestions:
        return self.desk.screen.query_one(Suggestions)

    def _commands(self, typed: str) -> list[Suggestion]:
        from qlocal.chat.features import ACTIONS

        if " " in typed:
            return self._names(typed)
        named = [action for action in ACTIONS if action.slash.startswith(typed)]
        named += [action for action in ACTIONS if typed in action.slash and action not in named]
        named.sort(key=lambda action: action.slash != typed)
        if len(named) == 1 and named[0].slash == typed:
            return []
        return [
            Suggestion(f"{PREFIX}{action.slash}{' ' if action.argument else ''}", PREFIX + action.slash, t(action.help))
            for action in named[:MAX_SHOWN]
        ]

    def _names(self, typed: str) -> list[Suggestion]:
        """Return what can stand behind a command that takes one of the names that the user keeps."""
        from qlocal.chat.features import ACTIONS

        command, _, begun = typed.partition(" ")
        shelf = next((action.shelf for action in ACTIONS if action.slash == command.replace("_", "-")), None)
        if shelf is None or " " in begun:
            return []
        return [Suggestion(f"{PREFIX}{command} {name}", name) for name in shelf.names() if name.startswith(begun)][
            :MAX_SHOWN
        ]


def files_like(typed: str) -> list[Suggestion]:
    """Return the files and folders that a path may become; hidden ones where a dot was typed."""
    folder, _, name = typed.rpartition("/")
    base = folder + "/" if "/" in typed else ""
    try:
        entries = sorted(Path(base or ".").expanduser().iterdir(), key=lambda path: (not path.is_dir(), path.name))
        found = [
            (path.name + "/" if path.is_dir() else path.name)
            for path in entries
            if path.name.lower().startswith(name.lower()) and (name.startswith(".") or not path.name.startswith("."))
        ]
    except (OSError, RuntimeError, ValueError):
        return []  # no such folder or user yet: typing goes on
    return [Suggestion(AT + base + one, base + one) for one in found[:MAX_SHOWN]]
