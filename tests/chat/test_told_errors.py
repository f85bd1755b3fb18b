"""Errors are told in the language of the chat, whether they come from the chat itself, its server or the engine."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import qlocal
from qlocal.chat.documents import read_document
from qlocal.chat.languages import speak
from qlocal.chat.link_state import LinkState, Phase
from qlocal.chat.preferences import Preferences
from qlocal.chat.told_errors import MAX_CHARS, SENTENCES, told
from qlocal.endings import ending
from qlocal.errors import QLocalError
from qlocal.plan import make_plan
from tests.chat.driving import Chat, run_chat
from tests.chat.scripted import ScriptedLink
from tests.memory_checkpoint import MemoryCheckpoint

BROKE = "The server went away (the connection to the server broke: [Errno 104] Connection reset by peer)"
COMPOSED = ("{name} with ", "the engine ended", "the engine was ended", "although it was planned", "End what took")
OUTSIDE = "[Errno 104] Connection reset by peer"


@pytest.fixture
def in_chinese() -> Iterator[None]:
    speak("zh")
    yield
    speak("en")


def has_english(text: str) -> bool:
    """Whether two English words stand beside each other."""
    return re.search(r"[a-z]{2,} [a-z]{2,}", text.replace(OUTSIDE, "")) is not None


def raised(kind: str, tmp_path: Path) -> str:
    with pytest.raises(QLocalError) as found:
        match kind:
            case "memory":
                make_plan(MemoryCheckpoint("qwen2"), ["cpu"], max_memory=1 << 20)
            case "context":
                make_plan(MemoryCheckpoint("qwen2"), ["cpu"], 513)
            case "binary":
                (tmp_path / "a b.txt").write_bytes(b"\xff")
                read_document(tmp_path / "a b.txt")
    return str(found.value)


@pytest.mark.usefixtures("in_chinese")
@pytest.mark.parametrize("kind", ["memory", "context", "binary"])
def test_what_is_raised_is_known_to_its_last_sentence(kind: str, tmp_path: Path) -> None:
    message = raised(kind, tmp_path)
    assert has_english(message) and not has_english(told(message)), told(message)


@pytest.mark.usefixtures("in_chinese")
@pytest.mark.parametrize(
    "message",
    [
        BROKE,
        "tiny could not be loaded: " + ending("the engine", -9),
        ending("the engine", 1),
        "q with 4096 tokens of context needs 3.20 GiB on cuda:0 and cuda:1 (2.00 GiB weights, 1.00 GiB cache, 205 MiB "
        "scratch), 900 MiB can be used of 1.00 GiB that are free, other programs hold 22.00 GiB. The largest context "
        "that fits is 1024 tokens; --kv q8 makes 4096 fit.",
        "memory ran out while q was loaded, although it was planned with 1.00 GiB of 2.00 GiB that were free on cpu. "
        "End what took memory meanwhile, or load with less: --context 256.",
        "the prompt has 512 tokens, and this model's maximum context length is 512. "
        "Shorten it, load the model with a larger context, or ask to truncate the middle.",
    ],
)
def test_a_message_of_several_sentences_is_told_whole(message: str) -> None:
    assert not has_english(told(message)), told(message)
    speak("en")
    assert told(message) == message, "English is what it was"


@pytest.mark.usefixtures("in_chinese")
def test_what_is_unknown_stays_as_it_is() -> None:
    for message in ("", "rope_type 'x' is new", "no model is loaded today", "no model is loaded. " * MAX_CHARS):
        assert told(message) == message
    assert told("no model is loaded. Something new.") == "没有加载模型。Something new."
    assert told("{name} is no file") == "{name} 不是文件", "what stands in it is text"


def test_every_sentence_is_written_somewhere() -> None:
    """What nobody raises any more would be translated for nothing. Some are put together of parts: see above."""
    written = "\n".join(_written())
    unknown = [s for s in SENTENCES if not s.startswith(COMPOSED) and _blank(s) not in written]
    assert unknown == []


def _written() -> Iterator[str]:
    for path in Path(qlocal.__file__).parent.rglob("*.py"):
        if path.name == "told_errors.py" or "languages" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def _blank(sentence: str) -> str:
    return re.sub(r"\{\w+\}", "{}", sentence)


def test_the_chat_tells_a_lost_server_in_chinese(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.until(lambda: "服务器已断开" in chat.notice and not has_english(chat.notice))
        await chat.say("你好")
        await chat.until(lambda: "Esc" in chat.notice and not has_english(chat.notice))

    lost = LinkState(Phase.FAILED, "tiny", error=BROKE)
    try:
        run_chat(tmp_path, ScriptedLink([], first_states=[lost]), use, preferences=Preferences(language="zh"))
    finally:
        speak("en")
