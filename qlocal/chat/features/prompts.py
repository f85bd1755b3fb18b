"""The library of prompts: files of one's own with variables, put into the editor."""

from __future__ import annotations

from typing import ClassVar

from qlocal.chat import words
from qlocal.chat.actions import Action
from qlocal.chat.external_editor import edit_file
from qlocal.chat.features.base import Feature
from qlocal.chat.languages import t
from qlocal.chat.library import PROMPTS, fill, variables
from qlocal.chat.screens.form import Form
from qlocal.chat.screens.picker import Line, Picker

DRAFT = "draft"
"""The variable that what is being written stands for."""
NAME = "name"


class Prompts(Feature):
    """A prompt is put into the editor, never sent by itself."""

    ACTIONS: ClassVar = (
        Action(
            "prompt",
            "alt+p",
            "Prompts",
            "Put a prompt of the library into the editor; its variables are asked for",
            is_shown=False,
            argument="NAME",
            shelf=PROMPTS,
        ),
        Action(
            "save_prompt",
            "",
            "Save prompt",
            "Keep the draft, or else your last message, as a prompt of the library",
            is_shown=False,
            argument="NAME",
            shelf=PROMPTS,
        ),
        Action(
            "edit_prompt",
            "",
            "Edit prompt",
            "Change a prompt of the library, or write a new one, in $EDITOR",
            is_shown=False,
            argument="NAME",
            shelf=PROMPTS,
        ),
    )

    def prompt(self, name: str = "") -> None:
        self.desk.start(self._insert(name), "choose")

    def save_prompt(self, name: str = "") -> None:
        self.desk.start(self._save(name), "choose")

    def edit_prompt(self, name: str = "") -> None:
        self.desk.start(self._edit(name), "choose")

    async def _choose(self) -> str | None:
        lines = [Line(name, words.first_line(PROMPTS.read(name)), name) for name in PROMPTS.names()]
        return await self.desk.ask(Picker(words.kept_in(PROMPTS.folder), lines, ""))

    async def _insert(self, name: str) -> None:
        chosen = name or await self._choose()
        if not chosen:
            return
        editor = self.desk.prompt
        text, draft = PROMPTS.read(chosen), editor.text
        names = variables(text)
        if names:
            values = await self.desk.ask(Form(chosen, {one: draft if one == DRAFT else "" for one in names}))
            if values is None:
                return
            text = fill(text, values)
        if DRAFT in names or not draft:
            editor.text = text
            editor.move_cursor(editor.document.end)
        else:
            editor.replace(text, *editor.selection)
        editor.focus()

    async def _save(self, name: str) -> None:
        last = self.desk.session.last_prompt()
        text = self.desk.prompt.sent_text.strip() or (last.content if last is not None else "")
        if not text:
            self.desk.say(words.NOTHING_TO_KEEP)
            return
        chosen = name or await self._ask_name()
        if chosen and await self._may_replace(chosen):
            self.desk.say(words.exported(PROMPTS.write(chosen, text)))

    async def _edit(self, name: str) -> None:
        chosen = name or await self._choose()
        if not chosen:
            return
        path = PROMPTS.path(chosen)
        if not path.exists():
            PROMPTS.write(chosen, PROMPTS.read(chosen) if PROMPTS.has(chosen) else t(words.NEW_PROMPT))
        edit_file(self.desk.screen.app, path)
        self.desk.say(words.exported(path))

    async def _ask_name(self) -> str:
        values = await self.desk.ask(Form(t(words.NAME_IT), {NAME: ""}))
        return "" if values is None else values[NAME].strip()

    async def _may_replace(self, name: str) -> bool:
        if not PROMPTS.path(name).exists():
            return True
        lines: list[Line[bool]] = [Line(t(words.KEEP_IT), "", False), Line(t(words.REPLACE_IT), name, True)]
        return await self.desk.ask(Picker(t(words.IS_KEPT_ALREADY), lines, "")) is True
