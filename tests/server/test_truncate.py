"""A prompt that is too long loses the middle of its longest message, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from qlocal.server.chat_messages import ChatMessage
from qlocal.server.truncate import Cut, cut_middle

HEAD = 10


def conversation(*texts: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text) for text in texts]


async def encode(messages: Sequence[ChatMessage]) -> list[int]:
    """A token a character, rare letters three, and ten a message."""
    return [ord(c) for m in messages for c in "#" * HEAD + str(m.content) for _ in range(3 if c in "XYZ" else 1)]


def cut(messages: list[ChatMessage], room: int) -> Cut | None:
    async def whole() -> Cut | None:
        return await cut_middle(messages, await encode(messages), room, encode)

    return asyncio.run(whole())


def test_what_fits_stays_whole() -> None:
    messages = conversation("one", "two")
    assert cut(messages, 26) == Cut(asyncio.run(encode(messages)))


def test_the_beginning_the_end_and_other_messages_stay() -> None:
    book = "begin " + "middle " * 500 + " end"
    found = cut(conversation("system", book, "question"), 600)
    assert found is not None and 500 < len(found.ids) <= 600
    text = "".join(map(chr, found.ids))
    assert text.startswith("##########system##########begin ") and text.endswith(" end##########question")
    assert "characters left out here" in text
    assert found.left_out == len(asyncio.run(encode(conversation("system", book, "question")))) - len(found.ids)


def test_text_that_has_more_tokens_at_its_ends_is_cut_until_it_fits() -> None:
    found = cut(conversation("XYZ" * 300 + "a" * 5000 + "XYZ" * 300), 900)
    assert found is not None and len(found.ids) <= 900


def test_where_the_rest_alone_is_too_long_nothing_is_cut() -> None:
    assert cut(conversation("a" * 300, "b" * 290), 100) is None
