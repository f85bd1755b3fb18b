"""Every sentence of the chat is in every language, with the same placeholders."""

from __future__ import annotations

import ast
import string
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

import pytest

from qlocal.chat import told_errors, words
from qlocal.chat.features import ACTIONS
from qlocal.chat.languages import MODULES, speak, t
from qlocal.chat.link_state import LinkState, Phase
from qlocal.chat.preferences import LANGUAGES, Preferences
from qlocal.chat.stages import memory, stage
from qlocal.schema import EngineState, Status
from tests.chat.driving import Chat, run_chat
from tests.chat.scripted import ScriptedLink, answer_of

CHAT = Path(words.__file__).parent


def spoken() -> set[str]:
    """All texts that are looked up: what is written inside t(...), the constants of words.py, actions and phases."""
    texts = {text for path in CHAT.rglob("*.py") for text in looked_up(ast.parse(path.read_text()))}
    texts |= {text for name, text in vars(words).items() if name.isupper() and isinstance(text, str)}
    texts |= {*told_errors.SENTENCES, *told_errors.MARKS}
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


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("reading headers and tokenizer", "正在读取文件头和分词器"),
        ("loading 1.00 GiB on cpu for 4,096 tokens", "正在加载1.00 GiB 到 cpu，供 4,096 个词元使用"),
        (
            "loading 20.0 GiB on cuda:0 and 19.5 GiB on cuda:1 for 8,192 tokens, tensor split",
            "正在加载20.0 GiB 到 cuda:0，19.5 GiB 到 cuda:1，供 8,192 个词元使用，按张量切分",
        ),
        ("waiting for other nodes at 10.0.0.1:7000", "正在 10.0.0.1:7000 等待其他节点"),
        ("starting the engine again", "正在重新启动引擎"),
        ("the server that runs loads tiny again, on cpu", "正在运行的服务器重新加载 tiny, on cpu"),
        ("a stage of a newer server", "a stage of a newer server"),
    ],
)
def test_stages_of_loading_are_in_the_language_of_the_chat(told: str, shown: str, tmp_path: Path) -> None:
    loading = LinkState(Phase.LOADING, "tiny", stage=told)

    async def use(chat: Chat) -> None:
        await chat.until(lambda: shown in chat.status)
        speak("en")
        assert stage(told) == told

    run_chat(tmp_path, ScriptedLink([], first_states=[loading]), use, preferences=Preferences(language="zh"))


def test_the_memory_of_a_load_is_told_in_the_language_of_the_chat() -> None:
    device = {"weight_bytes": 2 << 30, "mapped_bytes": 0, "cache_bytes": 512 << 20, "scratch_bytes": 128 << 20}
    devices = [{"device": "cuda:0", **device}, {"device": "cuda:1", **device}]
    plan = {"devices": devices, "max_context": 8192, "key_type": "q8", "value_type": "q4"}
    told = Status(EngineState.READY, "0", 1, plan=plan, used={"cuda:0": 3 << 30}).memory
    assert told is not None and memory(told) == told
    speak("zh")
    try:
        shown = memory(told)
        assert shown == (
            "上下文 8,192，类型 q8,q4：cuda:0 权重 2.00 GiB，缓存 512 MiB，计算 128 MiB，使用中 3.00 GiB；"
            "cuda:1 权重 2.00 GiB，缓存 512 MiB，计算 128 MiB"
        )
        assert memory("Context 1 in f16: what a newer server says") == "Context 1 in f16: what a newer server says"
    finally:
        speak("en")
