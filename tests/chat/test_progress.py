"""How far a long prompt is read: a comment in the stream that other clients skip."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from qlocal.chat import wire
from qlocal.chat.sse import event_data
from qlocal.schema import PromptProgress
from qlocal.server.streaming import PING, comment, event

PROGRESS = PromptProgress(12_288, 131_072, 340.4, 349.0)


def test_the_comment_of_the_server_is_read_and_pings_are_not() -> None:
    async def found() -> list[str]:
        async def chunks() -> AsyncIterator[bytes]:
            yield PING + comment(PROGRESS.to_json())
            yield event({"choices": []})

        return [data async for data in event_data(chunks())]

    said, data = asyncio.run(found())
    assert wire.parse_comment(said) == PROGRESS
    assert data == '{"choices":[]}'


def test_the_sentence_has_speed_and_time_left() -> None:
    assert PROGRESS.sentence == "reading the prompt: 12,288 of 131,072 tokens, 340 tokens/s, 5 min 49 s left"
    assert PromptProgress(1, 2, 0.5, 2.0).sentence.endswith("0 tokens/s, 2 s left")


@pytest.mark.parametrize("said", [": qlocal {", ": qlocal 3", ': qlocal {"done_tokens": "x"}', ": qlocal {}"])
def test_what_another_version_says_is_left_out(said: str) -> None:
    assert wire.parse_comment(said) is None
