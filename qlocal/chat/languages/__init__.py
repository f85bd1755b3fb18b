"""The languages of the chat. English is the source: a sentence is looked up by its English text, and stays English
where a catalogue lacks it (a test lists what is missing)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

MODULES = {"zh": "qlocal.chat.languages.chinese"}
_EMPTY: Mapping[str, str] = MappingProxyType({})
_current = _EMPTY


def speak(language: str) -> None:
    """Use a language of `preferences.LANGUAGES` from now on; en is what every text is written in."""
    global _current
    _current = import_module(MODULES[language]).TEXTS if language in MODULES else _EMPTY


def t(english: str) -> str:
    """Return a text in the language that is spoken. Placeholders in braces are filled by the caller, with `format`."""
    return _current.get(english, english)
