"""The links: to our own server, started again when it dies, and to somebody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path

import pytest

from qlocal import launch
from qlocal.chat import link as link_module
from qlocal.chat.events import TokenCount
from qlocal.chat.link import EndpointLink, LocalLink, open_link
from qlocal.chat.link_state import Choice, LinkState, Phase
from qlocal.config import ChatOptions, EngineOptions
from qlocal.errors import RequestError
from tests.chat.fake_server import Handler, fake_server


@pytest.fixture
def url() -> Iterator[str]:
    with fake_server() as found:
        yield found


@pytest.fixture
def started(url: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | None, EngineOptions | None]]:
    """Every call that would have started a server."""
    calls: list[tuple[str | None, EngineOptions | None]] = []

    def ensure_server(
        model: str | None, options: EngineOptions | None = None, announce: Callable[[str], None] = lambda said: None
    ) -> launch.Address:
        calls.append((model, options))
        return launch.Address(url=url)

    monkeypatch.setattr(launch, "ensure_server", ensure_server)
    monkeypatch.setattr(link_module, "RETRY_S", 0.01)
    return calls


async def take(states: AsyncGenerator[LinkState, None], count: int) -> list[LinkState]:
    async with asyncio.timeout(20):
        return [await anext(states) for _ in range(count)]


def test_our_server_is_started_followed_and_started_again(
    started: list[tuple[str | None, EngineOptions | None]],
) -> None:
    async def scenario() -> None:
        link = LocalLink(ChatOptions(model="tiny", context=512, devices=("cpu", "cpu")))
        states = link.states()
        first = await take(states, 5)
        assert [s.phase for s in first] == [Phase.STARTING, Phase.LOADING, Phase.READY, Phase.LOST, Phase.STARTING]
        assert (first[1].stage, first[1].fraction) == ("loading weights", 0.75)
        assert first[2].max_context == 2048
        assert "went away" in (first[4].error or "")
        await take(states, 1)
        assert await link.count([{"role": "user", "content": "a"}]) == TokenCount(7, 2048)
        await states.aclose()
        await link.aclose()

    asyncio.run(scenario())
    assert started == [("tiny", EngineOptions(devices=("cpu", "cpu"), max_context=512))] * 2


def test_a_model_given_by_its_path_is_shown_by_its_name(started: list[tuple[str | None, EngineOptions | None]]) -> None:
    async def scenario() -> None:
        states = LocalLink(ChatOptions(model="/a/long/folder/tiny-q4_k_m.gguf")).states()
        assert (await anext(states)).model == "tiny-q4_k_m"
        await states.aclose()

    asyncio.run(scenario())


def test_a_server_that_keeps_dying_is_left_until_another_model_is_chosen(
    started: list[tuple[str | None, EngineOptions | None]],
) -> None:
    async def scenario() -> None:
        link = LocalLink(ChatOptions(model="tiny"))
        states = link.states()
        await take(states, 4 * (link_module.MAX_RESTARTS + 1))
        waiting = asyncio.ensure_future(anext(states))
        await asyncio.sleep(0.1)
        assert not waiting.done() and len(started) == link_module.MAX_RESTARTS + 1
        await link.select("other")
        assert (await waiting).phase is Phase.STARTING
        await states.aclose()
        await link.aclose()

    asyncio.run(scenario())


def test_a_model_is_changed_by_the_server_with_the_same_options(
    started: list[tuple[str | None, EngineOptions | None]],
) -> None:
    async def scenario() -> None:
        link = LocalLink(ChatOptions(model="tiny", context=512))
        states = link.states()
        await take(states, 2)
        await link.select("other")
        await states.aclose()
        await link.aclose()

    asyncio.run(scenario())
    assert Handler.loads == [{"model": "other", "max_context": 512, "devices": ["cpu"]}]


def test_a_refused_model_is_said_and_another_can_be_chosen(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def ensure_server(
        model: str | None, options: EngineOptions | None = None, announce: Callable[[str], None] = lambda said: None
    ) -> launch.Address:
        if model == "nonsense":
            raise RequestError("there is no model 'nonsense'")
        return launch.Address(url=url)

    monkeypatch.setattr(launch, "ensure_server", ensure_server)

    async def scenario() -> None:
        link = LocalLink(ChatOptions(model="nonsense"))
        states = link.states()
        failed = (await take(states, 2))[1]
        assert failed.phase is Phase.FAILED and "nonsense" in (failed.error or "")
        following = asyncio.ensure_future(take(states, 3))
        await asyncio.sleep(0.05)
        await link.select("tiny")
        assert [s.phase for s in await following] == [Phase.STARTING, Phase.LOADING, Phase.READY]
        await states.aclose()
        await link.aclose()

    asyncio.run(scenario())


def test_the_model_folder_comes_before_what_could_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLOCAL_HOME", str(tmp_path))
    (tmp_path / "mine.gguf").write_bytes(b"")
    choices = asyncio.run(LocalLink(ChatOptions()).choices())
    assert choices[0] == Choice("mine", str(tmp_path / "mine.gguf"))
    assert len(choices) > 5 and not any(choice.is_here for choice in choices[1:])


def test_an_endpoint_with_one_model_is_ready_at_once(url: str) -> None:
    async def scenario() -> None:
        link = open_link(ChatOptions(endpoint=url + "/v1"))
        assert isinstance(link, EndpointLink)
        states = link.states()
        assert (await take(states, 2))[1] == LinkState(Phase.READY, "fake-model", max_context=2048, endpoint=url)
        assert await link.choices() == [Choice("fake-model")]
        await link.select("other")
        assert (await take(states, 1))[0].model == "other"
        await states.aclose()
        await link.aclose()

    asyncio.run(scenario())


def test_an_endpoint_that_does_not_answer_is_named() -> None:
    async def scenario() -> None:
        link = EndpointLink(ChatOptions(endpoint="http://127.0.0.1:9"))
        states = link.states()
        state = (await take(states, 2))[1]
        assert state.phase is Phase.FAILED and "127.0.0.1 does not answer" in (state.error or "")
        await states.aclose()
        await link.aclose()

    asyncio.run(scenario())


def test_what_a_server_has_to_change_is_the_stage_of_loading(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def ensure_server(
        model: str | None, options: EngineOptions | None = None, announce: Callable[[str], None] = lambda said: None
    ) -> launch.Address:
        assert options is not None and (options.kv, options.draft) == ("q8", "small")
        announce("the server that runs loads tiny again, with keys and values in q8 instead of f16")
        return launch.Address(url=url)

    monkeypatch.setattr(launch, "ensure_server", ensure_server)

    async def scenario() -> None:
        states = LocalLink(ChatOptions(model="tiny", kv="q8", draft="small")).states()
        said = (await take(states, 2))[1]
        assert said.phase is Phase.LOADING and "q8 instead of f16" in (said.stage or "")
        await states.aclose()

    asyncio.run(scenario())
