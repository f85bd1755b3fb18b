"""How a conversation asks: its system message and its sampling, kept with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from qlocal.chat import words
from qlocal.chat.actions import Action, closest
from qlocal.chat.features.base import Feature
from qlocal.errors import UsageError

FIELDS: Mapping[str, tuple[type, float, float]] = {
    "temperature": (float, 0, 2),
    "top_p": (float, 0, 1),
    "top_k": (int, 0, 1 << 20),
    "min_p": (float, 0, 1),
    "repetition_penalty": (float, 0.01, 10),
    "max_tokens": (int, 1, 1 << 20),
    "seed": (int, 0, (1 << 31) - 1),
}
PRESETS: Mapping[str, dict[str, Any]] = {
    "recommended": {},
    "exact": {"temperature": 0.0},
    "lively": {"temperature": 1.0, "top_p": 0.95},
}


class Asking(Feature):
    """Changes hold from the next message on."""

    ACTIONS: ClassVar = (
        Action(
            "system",
            "",
            "System",
            "Show the system message, or give another; - takes it away",
            argument="TEXT",
            is_shown=False,
        ),
        Action(
            "sampling",
            "",
            "Sampling",
            "Sample by recommended, exact, lively, or temperature=0.7 top_p=0.9",
            argument="FIELDS",
            is_shown=False,
        ),
    )

    def system(self, text: str) -> None:
        if text:
            self.desk.start(self._change_system(None if text == "-" else text), "history")
        else:
            self.desk.say(self.desk.session.system or words.SYSTEM_NONE)

    def sampling(self, text: str) -> None:
        self.desk.start(self._change_sampling(text), "history")

    async def _change_system(self, system: str | None) -> None:
        await self.desk.session.change_system(system)
        self.desk.say(words.SYSTEM_CHANGED if system else words.SYSTEM_NONE)

    async def _change_sampling(self, text: str) -> None:
        if text:
            await self.desk.session.change_sampling(parse_sampling(text))
        self.desk.say(words.sampling_is(self.desk.session.sampling))


def parse_sampling(text: str) -> dict[str, Any]:
    """Return the fields of a preset, or of `name=value` parts. UsageError names what is wrong."""
    if text in PRESETS:
        return dict(PRESETS[text])
    found: dict[str, Any] = {}
    for part in text.replace(",", " ").split():
        name, equals, value = part.partition("=")
        if name not in FIELDS or not equals:
            raise UsageError(f"'{part}' is no sampling field with its value", hint=closest(name, [*FIELDS, *PRESETS]))
        kind, least, most = FIELDS[name]
        try:
            number = kind(value)
        except ValueError:
            number = None
        if number is None or not least <= number <= most:
            raise UsageError(f"{name} is {value!r}, expected a number from {least:g} to {most:g}")
        found[name] = number
    return found
