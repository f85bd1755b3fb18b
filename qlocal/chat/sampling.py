"""Sampling as the user writes it: `temperature=0.7 top_p=0.9`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlocal.chat.actions import closest
from qlocal.chat.library import SAMPLINGS
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


def parse_sampling(text: str) -> dict[str, Any]:
    """Return the fields of a preset by its name, or of `name=value` parts. UsageError names what is wrong."""
    if "=" not in text and SAMPLINGS.has(text.strip()):
        return parse_fields(SAMPLINGS.read(text.strip()))
    if "=" not in text and len(text.split()) == 1:
        raise SAMPLINGS.missing(text.strip())
    return parse_fields(text)


def parse_fields(text: str) -> dict[str, Any]:
    """Return the fields of `name=value` parts."""
    found: dict[str, Any] = {}
    for part in text.replace(",", " ").split():
        name, equals, value = part.partition("=")
        if name not in FIELDS or not equals:
            hint = closest(name, [*FIELDS, *SAMPLINGS.names()])
            raise UsageError(f"'{part}' is no sampling field with its value", hint=hint)
        kind, least, most = FIELDS[name]
        try:
            number = kind(value)
        except ValueError:
            number = None
        if number is None or not least <= number <= most:
            raise UsageError(f"{name} is {value!r}, expected a number from {least:g} to {most:g}")
        found[name] = number
    return found


def written(fields: Mapping[str, Any]) -> str:
    """Return fields as they are written."""
    return " ".join(f"{name}={value}" for name, value in fields.items())
