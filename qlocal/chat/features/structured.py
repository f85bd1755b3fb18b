"""Structured answers: a JSON schema that the server holds answers to, and a mark of what is written so far."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, ClassVar

from qlocal import config
from qlocal.chat import words
from qlocal.chat.actions import Action
from qlocal.chat.desk import Desk
from qlocal.chat.features.base import Feature
from qlocal.chat.json_check import JsonCheck
from qlocal.chat.languages import t
from qlocal.chat.screens.picker import Line, Picker
from qlocal.chat.typed_path import typed_path
from qlocal.errors import UsageError

MAX_SCHEMA_BYTES = 1 << 20
NONE = ""


class Structured(Feature):
    """The schema holds until another one, or none, is chosen. The server follows it; the chat only looks."""

    ACTIONS: ClassVar = (
        Action(
            "schema",
            "",
            "Schema",
            "Hold answers to a JSON schema: a file, or the schema itself; nothing to choose one",
            is_shown=False,
            argument="FILE",
        ),
    )

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._name: str | None = None
        self._schema: dict[str, Any] = {}
        self._check: JsonCheck | None = None

    def schema(self, text: str = "") -> None:
        self.desk.start(self._choose(text.strip()), "choose")

    @property
    def options(self) -> dict[str, Any]:
        """What a request is to say of its answer's form."""
        if self._name is None:
            return {}
        described = {"name": self._name, "schema": self._schema, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": described}}

    def begin(self) -> None:
        """An answer begins."""
        self._check = JsonCheck() if self._name is not None else None
        self.desk.update_status(form="")

    def take(self, text: str) -> None:
        """More of it was written."""
        if self._check is not None:
            self._check.feed(text)
            self.desk.update_status(form=self._check.state.value)

    async def _choose(self, text: str) -> None:
        if text.startswith("{"):
            self._use("pasted", _parsed(text, "the schema"))
        elif text:
            await self._use_file(typed_path(text))
        else:
            folder = config.config_folder() / "schemas"
            paths = await asyncio.to_thread(lambda: sorted(folder.glob("*.json")))
            lines = [Line(path.stem, str(path), str(path)) for path in paths]
            lines.append(Line(t(words.NO_SCHEMA), words.schemas_in(folder), NONE))
            chosen = await self.desk.ask(Picker(t(words.SCHEMAS), lines, ""))
            if chosen == NONE:
                self._name = None
                self.desk.say(words.SCHEMA_OFF)
            elif chosen is not None:
                await self._use_file(Path(chosen))

    async def _use_file(self, path: Path) -> None:
        try:
            if path.stat().st_size > MAX_SCHEMA_BYTES:
                raise UsageError(f"{path.name} has more than {MAX_SCHEMA_BYTES:,} bytes")
            text = await asyncio.to_thread(path.read_text, "utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read: {error}") from error
        self._use(path.stem, _parsed(text, path.name))

    def _use(self, name: str, schema: dict[str, Any]) -> None:
        plain = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in name)[:64]
        self._name, self._schema = plain or "schema", schema
        self.desk.say(words.schema_on(name))


def _parsed(text: str, name: str) -> dict[str, Any]:
    """Return a schema. UsageError where the text is none; whether it can be followed is the server's to say."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise UsageError(f"{name} is no JSON schema: expected an object")
    return schema
