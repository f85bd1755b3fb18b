"""How a conversation asks: its system message and its sampling, kept with it, and both kept by name for others."""

from __future__ import annotations

import re
from typing import ClassVar

from qlocal.chat import words
from qlocal.chat.actions import Action, closest
from qlocal.chat.features.base import Feature
from qlocal.chat.languages import t
from qlocal.chat.library import DEFAULT, SAMPLINGS, SYSTEMS, Shelf
from qlocal.chat.sampling import parse_fields, parse_sampling, written
from qlocal.chat.screens.picker import Line, Picker
from qlocal.errors import UsageError

NONE = "-"
A_WORD = re.compile(r"[A-Za-z0-9_-]+")
"""What looks like a name: texts in Chinese have no spaces either, but are no such word."""


class Asking(Feature):
    """Changes hold from the next message on. What is called `default` is that of new conversations."""

    ACTIONS: ClassVar = (
        Action(
            "system",
            "",
            "System",
            "Choose a system message by its name, or give one; - takes it away",
            argument="TEXT",
            shelf=SYSTEMS,
            is_shown=False,
        ),
        Action(
            "sampling",
            "",
            "Sampling",
            "Choose a sampling by its name, or give fields: temperature=0.7 top_p=0.9",
            argument="FIELDS",
            shelf=SAMPLINGS,
            is_shown=False,
        ),
        Action(
            "save_system",
            "",
            "Save system",
            "Keep this conversation's system message by a name; default is that of new ones",
            argument="NAME",
            is_shown=False,
        ),
        Action(
            "save_sampling",
            "",
            "Save sampling",
            "Keep this conversation's sampling by a name; default is that of new ones",
            argument="NAME",
            is_shown=False,
        ),
    )

    def system(self, text: str = "") -> None:
        self.desk.start(self._change_system(text), "choose")

    def sampling(self, text: str = "") -> None:
        self.desk.start(self._change_sampling(text), "choose")

    def save_system(self, name: str = "") -> None:
        self.desk.start(self._save(SYSTEMS, name, self.desk.session.system or ""), "choose")

    def save_sampling(self, name: str = "") -> None:
        self.desk.start(self._save(SAMPLINGS, name, written(self.desk.session.sampling)), "choose")

    async def _change_system(self, text: str) -> None:
        session = self.desk.session
        chosen = text or await self._choose(SYSTEMS, session.system or t(words.NO_SYSTEM), t(words.NO_SYSTEM))
        if chosen is None:
            return
        if chosen == NONE:
            await session.change_system(None)
        else:
            await session.change_system(_system_of(chosen))
        self.desk.say(words.SYSTEM_CHANGED if session.system else words.SYSTEM_NONE)

    async def _change_sampling(self, text: str) -> None:
        session = self.desk.session
        chosen = text or await self._choose(SAMPLINGS, words.sampling_is(session.sampling), None)
        if chosen is None:
            return
        await session.change_sampling(parse_sampling(chosen))
        self.desk.say(words.sampling_is(session.sampling))

    async def _choose(self, shelf: Shelf, now: str, none: str | None) -> str | None:
        lines: list[Line[str]] = [Line(f"● {words.first_line(now)}", "", None)]
        lines += [Line(name, words.first_line(shelf.read(name)), name) for name in shelf.names()]
        if none is not None:
            lines.append(Line(none, "", NONE))
        return await self.desk.ask(Picker(words.kept_in(shelf.folder), lines, ""))

    async def _save(self, shelf: Shelf, name: str, text: str) -> None:
        if not name:
            self.desk.say(words.NAME_BEHIND)
            return
        path = shelf.write(name, text)
        if name == DEFAULT and shelf is SYSTEMS:
            self.desk.session.default_system = text or None
        elif name == DEFAULT:
            self.desk.session.default_sampling = parse_fields(text)
        self.desk.say(words.exported(path))


def _system_of(text: str) -> str:
    """Return the system message of a name, or the text itself. UsageError where it can only be a mistyped name."""
    if SYSTEMS.has(text):
        return SYSTEMS.read(text)
    if len(text.split()) == 1 and (A_WORD.fullmatch(text) or closest(text, SYSTEMS.names())):
        missing = SYSTEMS.missing(text)
        raise UsageError(missing.message, hint=f"{missing.hint} A message of one word ends with a full stop.")
    return text
