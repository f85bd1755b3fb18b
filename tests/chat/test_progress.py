"""How far a long prompt is read: a comment in the stream that other clients skip."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from qlocal.chat import wire
from qlocal.chat.languages import speak
from qlocal.chat.preferences import Preferences
from qlocal.chat.sse import event_data
from qlocal.schema import PromptProgress, QueuePlace
from qlocal.server.streaming import PING, comment, event
from tests.chat.driving import Chat, run_chat
from tests.chat.scripted import ScriptedLink, answer_of

PROGRESS = PromptProgress(12_288, 131_072, 340.4, 349.0)


def test_the_comment_of_the_server_is_read_and_pings_are_not() -> None:
    async def found() -> list[str]:
        async def chunks() -> AsyncIterator[bytes]:
            yield PING + comment(QueuePlace(2).to_json()) + comment(PROGRESS.to_json())
            yield event({"choices": []})

        return [data async for data in event_data(chunks())]

    place, said, data = asyncio.run(found())
    assert wire.parse_comment(place) == QueuePlace(2)
    assert wire.parse_comment(said) == PROGRESS
    assert data == '{"choices":[]}'


def test_the_sentence_has_speed_and_time_left() -> None:
    assert PROGRESS.sentence == "reading the prompt: 12,288 of 131,072 tokens, 340 tokens/s, 5 min 49 s left"
    assert PromptProgress(1, 2, 0.5, 2.0).sentence.endswith("0 tokens/s, 2 s left")


@pytest.mark.parametrize(
    "said", [": qlocal {", ": qlocal 3", ': qlocal {"done_tokens": "x"}', ": qlocal {}", ': qlocal {"ahead": "x"}']
)
def test_what_another_version_says_is_left_out(said: str) -> None:
    assert wire.parse_comment(said) is None


WAITS = {
    "en": ("2 before you", "next one is yours", "12,288 of 131,072 tokens", "5 min 49 s left"),
    "zh": ("前面还有 2 个", "下一个轮到您", "131,072 个词元中的 12,288 个", "还需 5 分 49 秒"),
}


@pytest.mark.parametrize("language", sorted(WAITS))
def test_the_chat_says_what_its_answer_waits_for_until_the_first_word(tmp_path: Path, language: str) -> None:
    before, following, done, left = WAITS[language]
    gates = [asyncio.Event() for _ in range(3)]
    ahead = [QueuePlace(2), gates[0], QueuePlace(0), gates[1], PROGRESS, gates[2]]
    link = ScriptedLink([[*ahead, *answer_of("here")]])

    async def use(chat: Chat) -> None:
        await chat.say("hello")
        for gate, told in zip(gates, ((before,), (following,), (done, left)), strict=True):
            await chat.until(lambda told=told: all(part in chat.notice for part in told))  # type: ignore[misc]
            gate.set()
        await chat.until_shown("here")
        await chat.until_idle()
        assert chat.notice == ""

    try:
        run_chat(tmp_path, link, use, preferences=Preferences(language=language))
    finally:
        speak("en")
