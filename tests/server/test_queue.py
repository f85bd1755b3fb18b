"""An answer that waits for its turn says how many are before it, to two chats and a client that knows nothing of it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from qlocal.chat.client import ChatClient
from qlocal.chat.events import AnswerEvent, Done, TextDelta
from qlocal.launch import Address
from qlocal.schema import QueuePlace
from tests.server.conftest import Running
from tests.server.real import real_server
from tests.tiny import write_checkpoint

SAID = [{"role": "user", "content": "hello dog"}]
EIGHT = {"n": 8, "max_tokens": 5, "temperature": 0.0}
BRIEF = {"max_tokens": 3, "temperature": 0.0}
WAIT_S = 120.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("queue")
    with real_server(folder, write_checkpoint(folder / "tiny"), slots=1) as running:
        yield running


async def answer(address: Address, options: dict[str, Any]) -> list[AnswerEvent]:
    """Ask as the chat does; return all that it is told."""
    client = ChatClient.at(address)
    try:
        async with aclosing(client.answer(SAID, None, options)) as events:
            return [event async for event in events]
    finally:
        await client.aclose()


@contextmanager
def standing_still(server: Running) -> Iterator[None]:
    """Have the engine do nothing, so that what is sent to it comes all at once."""
    pid = server.service.engine.pid
    assert pid is not None, "the model is loaded"
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def openai_text(address: Address) -> str:
    transport = httpx.AsyncHTTPTransport(uds=str(address.socket))
    async with (
        httpx.AsyncClient(transport=transport, timeout=WAIT_S) as http,
        AsyncOpenAI(base_url=f"{address.url}/v1", api_key="none", max_retries=0, http_client=http) as client,
    ):
        stream = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hello dog"}], stream=True, max_tokens=3, temperature=0
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def test_those_that_wait_are_told_their_places_and_others_are_not_disturbed(server: Running) -> None:
    async def scenario() -> tuple[list[list[AnswerEvent]], str]:
        chats, num_sequences = [], 0
        with standing_still(server):
            for options, count in ((EIGHT, 8), (BRIEF, 1), (BRIEF, 1)):
                chats.append(asyncio.create_task(answer(server.address, options)))
                num_sequences += count
                while server.service.engine.running < num_sequences:
                    await asyncio.sleep(0.01)
            other = asyncio.create_task(openai_text(server.address))
            while server.service.engine.running < num_sequences + 1:
                await asyncio.sleep(0.01)
        return await asyncio.gather(*chats), await other

    (busy, first, second), other = asyncio.run(asyncio.wait_for(scenario(), WAIT_S))
    assert places(busy) == [], "the first of its eight runs at once"
    assert places(first) == list(range(7, -1, -1)), "the other seven are before it, then one less each time"
    assert places(second) == list(range(8, -1, -1))
    assert all(isinstance(events[-1], Done) for events in (busy, first, second))
    text = "".join(event.text for event in first if isinstance(event, TextDelta))
    assert text and other == text


def places(events: list[AnswerEvent]) -> list[int]:
    return [event.ahead for event in events if isinstance(event, QueuePlace)]
