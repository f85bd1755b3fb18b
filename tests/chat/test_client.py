"""The client against a real HTTP server that streams, cuts, refuses and stalls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

import pytest

from qlocal.chat import wire
from qlocal.chat.client import ChatClient, ServedModel
from qlocal.chat.events import AnswerEvent, Done, Failure, TextDelta, ThinkingDelta, Usage
from qlocal.chat.sse import event_data
from qlocal.errors import ServerError, UsageError
from tests.chat.fake_server import Handler, fake_server

T = TypeVar("T")


@pytest.fixture
def url() -> Iterator[str]:
    with fake_server() as found:
        yield found


def with_client(url: str, use: Callable[[ChatClient], Awaitable[T]], token: str | None = None) -> T:
    async def scenario() -> T:
        client = ChatClient.to_url(url, token)
        try:
            return await use(client)
        finally:
            await client.aclose()

    return asyncio.run(scenario())


def answer(url: str, said: str) -> list[AnswerEvent]:
    async def use(client: ChatClient) -> list[AnswerEvent]:
        return [event async for event in client.answer([{"role": "user", "content": said}], "fake-model")]

    return with_client(url, use)


def text(events: list[AnswerEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def test_an_answer_comes_as_text_usage_and_done(url: str) -> None:
    events = answer(url, "hi")
    assert text(events) == "Answer 1 to hi.\n\n中文 \u2028 ok"
    assert events[-2:] == [Usage(11, 6), Done("stop")]
    assert Handler.requests[0]["stream_options"] == {"include_usage": True}


def test_a_stream_without_its_end_is_a_failure_and_keeps_the_text(url: str) -> None:
    events = answer(url, "cut")
    assert text(events).startswith("Answer")
    assert isinstance(events[-1], Failure) and "cut off" in events[-1].message


def test_an_error_inside_a_stream_ends_it(url: str) -> None:
    events = answer(url, "error")
    assert text(events) and events[-1] == Failure("the engine died", "server_error")


def test_a_refusal_shows_the_server_s_own_words(url: str) -> None:
    message = "The prompt has 3000 tokens, the context holds 2048"
    assert answer(url, "refuse") == [Failure(message, "context_length_exceeded")]


def test_a_server_that_is_not_there_is_a_failure_not_an_exception() -> None:
    (event,) = answer("http://127.0.0.1:9", "hi")
    assert isinstance(event, Failure) and "does not answer" in event.message
    with pytest.raises(ServerError, match="does not answer"):
        with_client("http://127.0.0.1:9", lambda client: client.models())


def test_cancelling_the_reader_closes_the_connection(url: str) -> None:
    async def use(client: ChatClient) -> float:
        got_text = asyncio.Event()

        async def read() -> None:
            async for _ in client.answer([{"role": "user", "content": "slow"}], None):
                got_text.set()

        task = asyncio.create_task(read())
        await got_text.wait()
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - started

    assert with_client(url, use) < 0.5
    deadline = time.monotonic() + 5
    while not Handler.disconnects and time.monotonic() < deadline:
        time.sleep(0.02)
    assert Handler.disconnects == ["slow"]


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_the_endpoint_may_be_given_with_or_without_v1(url: str, suffix: str) -> None:
    assert with_client(url + suffix, lambda client: client.models()) == [ServedModel("fake-model", 2048)]


def test_the_token_is_sent(url: str) -> None:
    async def use(client: ChatClient) -> list[AnswerEvent]:
        return [event async for event in client.answer([{"role": "user", "content": "hi"}], None)]

    with_client(url, use, token="secret")
    assert Handler.requests[-1]["authorization"] == "Bearer secret"


@pytest.mark.parametrize("endpoint", ["", "localhost:8080", "ftp://x", "http://", "http://[::1"])
def test_an_endpoint_that_is_no_url_is_refused(endpoint: str) -> None:
    with pytest.raises(UsageError, match="not a URL"):
        ChatClient.to_url(endpoint)


def sse(*chunks: bytes) -> list[str]:
    async def feed() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def collect() -> list[str]:
        return [data async for data in event_data(feed())]

    return asyncio.run(collect())


def test_events_survive_any_cut_between_bytes() -> None:
    stream = ': ping\r\n\r\ndata: {"a": "中\u2028文"}\r\n\r\nevent: x\ndata: one\ndata: two\n\ndata: [DONE]'.encode()
    expected = ['{"a": "中\u2028文"}', "one\ntwo", "[DONE]"]
    for cut in range(len(stream)):
        assert sse(stream[:cut], stream[cut:]) == expected
    assert sse(*[bytes([byte]) for byte in stream]) == expected


def test_an_event_that_was_cut_is_not_taken_for_a_whole_one() -> None:
    assert sse(b'data: {"a": 1}\n\ndata: {"b"') == ['{"a": 1}']


def test_an_endless_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlocal.chat.sse.MAX_EVENT_BYTES", 100)
    with pytest.raises(ServerError, match="more than 100 bytes"):
        sse(b"data: " + b"x" * 200)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error": {"message": "m"}}', "m"),
        ('{"error": "m"}', "m"),
        ('{"detail": "m"}', "m"),
        ('{"message": "m"}', "m"),
        ("<html>Bad gateway</html>", "the server answered HTTP 502 without saying why"),
        ("[]", "the server answered HTTP 502 without saying why"),
    ],
)
def test_every_shape_of_error_is_read(body: str, message: str) -> None:
    assert wire.parse_error(502, body).message == message


@pytest.mark.parametrize("data", ["[]", "{}", '{"choices": 3}', '{"choices": [null]}', '{"choices": [{"delta": []}]}'])
def test_strange_chunks_are_ignored(data: str) -> None:
    assert list(wire.parse_chunk(data)) == []


def test_chunks_carry_thinking_apart_and_no_half_characters() -> None:
    data = '{"choices": [{"delta": {"content": "a\\ud83d", "reasoning_content": "hm"}}]}'
    assert list(wire.parse_chunk(data)) == [ThinkingDelta("hm"), TextDelta("a\ufffd")]


def test_our_own_figures_are_read_from_usage() -> None:
    own = {"cached_tokens": 5, "prefill_s": 0.1, "decode_s": 2, "tokens_per_s": 3.5, "max_context": 4096}
    data = {"prompt_tokens": 7, "completion_tokens": 9}
    assert wire.parse_usage(data, own) == Usage(7, 9, 5, 0.1, 2.0, 3.5, 4096)


def test_a_status_that_is_none_is_an_error() -> None:
    with pytest.raises(ServerError, match="status"):
        wire.parse_status({"state": "dancing"})
