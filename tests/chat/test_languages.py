"""Every sentence of the chat is in every language, with the same placeholders."""

from __future__ import annotations

import ast
import string
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

import pytest

from qlocal.chat import words
from qlocal.chat.features import ACTIONS
from qlocal.chat.languages import MODULES, speak, t
from qlocal.chat.link_state import Phase
from qlocal.chat.preferences import LANGUAGES, Preferences
from tests.chat.driving import Chat, run_chat
from tests.chat.scripted import ScriptedLink, answer_of

CHAT = Path(words.__file__).parent


def spoken() -> set[str]:
    """All texts that are looked up: what is written inside t(...), the constants of words.py, actions and phases."""
    texts = {text for path in CHAT.rglob("*.py") for text in looked_up(ast.parse(path.read_text()))}
    texts |= {text for name, text in vars(words).items() if name.isupper() and isinstance(text, str)}
    texts |= {text for action in ACTIONS for text in (action.label, action.help, action.argument) if text}
    return texts | {phase.value for phase in Phase}


def looked_up(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "t" and node.args:
            match node.args[0]:
                case ast.Constant(value=str(text)):
                    yield text
                case ast.JoinedStr():
                    raise AssertionError(f"line {node.lineno}: a text with values in it cannot be looked up")


def placeholders(text: str) -> set[tuple[str, str]]:
    return {(name, form or "") for _, name, form, _ in string.Formatter().parse(text) if name is not None}


def catalogue(language: str) -> Mapping[str, str]:
    texts: Mapping[str, str] = import_module(MODULES[language]).TEXTS
    return texts


@pytest.mark.parametrize("language", sorted(MODULES))
def test_a_language_has_every_text_and_no_other(language: str) -> None:
    texts = catalogue(language)
    assert sorted(spoken() - texts.keys()) == [], "not translated: add them to the catalogue"
    assert sorted(texts.keys() - spoken()) == [], "nobody says these any more"


@pytest.mark.parametrize("language", sorted(MODULES))
def test_a_translation_has_the_placeholders_of_its_text(language: str) -> None:
    for english, other in catalogue(language).items():
        assert other.strip() and placeholders(other) == placeholders(english), english


def test_every_language_that_can_be_chosen_has_a_catalogue_or_is_english() -> None:
    assert set(LANGUAGES) == {"auto", "en", *MODULES}


def test_the_chat_speaks_chinese(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        assert "就绪" in chat.status
        assert chat.prompt.placeholder == t("Ask something …") != "Ask something …"
        await chat.pilot.press("ctrl+y")
        assert chat.notice == "没有可复制的回答。"
        await chat.say("/nonsense")
        assert "/nonsense" in chat.notice and "没有" in chat.notice
        await chat.pilot.press("ctrl+u")
        await chat.say("你好")
        await chat.until_shown("你好！")
        assert "你\n" in chat.shown

    try:
        run_chat(tmp_path, ScriptedLink([answer_of("你好！")]), use, preferences=Preferences(language="zh"))
    finally:
        speak("en")
