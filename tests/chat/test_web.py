"""The chat in a browser: a real page and a real websocket with a real chat behind it, for who knows the token."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from qlocal.chat.store.database import open_database
from qlocal.chat.store.history import History
from qlocal.chat.web import ChatPage
from qlocal.commands import chat as command
from qlocal.errors import QLocalError
from tests.chat.fake_server import fake_server

WAIT_S = 120.0


@pytest.fixture
def url() -> Iterator[str]:
    with fake_server() as found:
        yield found


def browse(arguments: list[str], use: Callable[[aiohttp.ClientSession, str], Awaitable[None]]) -> None:
    async def scenario() -> None:
        async with (
            asyncio.timeout(WAIT_S),
            ChatPage(arguments).serve(0) as address,
            aiohttp.ClientSession() as browser,
        ):
            await use(browser, address)

    asyncio.run(scenario())


def origin_of(address: str) -> dict[str, str]:
    return {"Origin": address.rsplit("/", 2)[0]}


def test_the_page_needs_nothing_from_elsewhere() -> None:
    async def use(browser: aiohttp.ClientSession, address: str) -> None:
        async with browser.get(address) as response:
            page = await response.text()
            policy = response.headers["Content-Security-Policy"]
        assert response.status == 200 and address.replace("http", "ws") + "ws" in page
        assert page.count("://") == 1 and "default-src 'none'" in policy
        assert response.headers["Referrer-Policy"] == "no-referrer"
        for path in ("page.css", "static/css/xterm.css", "static/js/textual.js"):
            async with browser.get(address + path) as response:
                assert response.status == 200, path
        async with browser.get(address + "static/fonts/RobotoMono-VariableFont_wght.ttf") as response:
            assert response.status == 200

    browse([], use)


def test_whoever_does_not_know_the_token_gets_nothing() -> None:
    async def use(browser: aiohttp.ClientSession, address: str) -> None:
        base = address.rsplit("/", 2)[0]
        token = address.split("/")[-2]
        assert len(token) >= 32
        paths = ["/", "/ws", "/static/js/textual.js", "/x/", "/x/ws", f"/{token[:-1]}/"]
        for path in [*paths, f"/{token}/static/", f"/{token}/static/..%2f..%2fserver.py", f"/{token}/download/1"]:
            async with browser.get(base + path, headers=origin_of(address)) as response:
                assert response.status == 404, path
                assert token not in await response.text()

    browse([], use)


@pytest.mark.parametrize("path", ["", "ws", "static/js/textual.js"])
@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "127.0.0.1"}, {"Origin": "http://evil.example"}, {"Origin": "null"}],
)
def test_pages_of_elsewhere_are_refused(path: str, headers: dict[str, str]) -> None:
    async def use(browser: aiohttp.ClientSession, address: str) -> None:
        async with browser.get(address + path, headers=headers) as response:
            assert response.status == 403

    browse([], use)


def test_a_websocket_without_an_origin_is_refused() -> None:
    async def use(browser: aiohttp.ClientSession, address: str) -> None:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await browser.ws_connect(address + "ws")
        assert caught.value.status == 403

    browse([], use)


def settle_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a chat's process speak English and keep its history here."""
    for name in ("QLOCAL_HOME", "QLOCAL_CONFIG", "XDG_STATE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("LC_ALL", "C.UTF-8")


async def until(socket: aiohttp.ClientWebSocketResponse, text: str) -> None:
    """Read until the chat has written a text."""
    seen = b""
    while text.encode() not in seen:
        message = await socket.receive()
        assert message.type is aiohttp.WSMsgType.BINARY, (message, seen[-2000:])
        seen += message.data


def test_a_window_is_a_chat_of_its_own_and_ends_in_order(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle_in(tmp_path, monkeypatch)

    async def use(browser: aiohttp.ClientSession, address: str) -> None:
        headers, place = origin_of(address), f"{address}ws?width=100&height=30"
        async with browser.ws_connect(place, headers=headers) as socket:
            await until(socket, "ready")
            await socket.send_json(["ping", 7])
            await socket.send_json(["resize", {"width": 90, "height": 25}])
            await socket.send_json(["stdin", "hello\r"])
            while (message := await socket.receive()).type is not aiohttp.WSMsgType.TEXT:
                assert message.type is aiohttp.WSMsgType.BINARY
            assert message.json() == ["pong", 7]
            await until(socket, "Answer")
            # Two windows at once; the first is closed by its browser, the second by its chat.
            async with browser.ws_connect(place, headers=headers) as other:
                await until(other, "ready")
                await socket.close()
                await other.send_json(["stdin", "\x11"])  # Ctrl+Q
                while (message := await other.receive()).type is aiohttp.WSMsgType.BINARY:
                    pass
                assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.TEXT)

    browse([f"--endpoint={url}"], use)
    paths = list(tmp_path.rglob("history.sqlite3"))
    assert len(paths) == 1, "the windows share the history"
    history = History(open_database(paths[0])[0])
    branch = history.branch(history.conversations()[0].conversation_id)
    assert branch[0].content == "hello" and "Answer" in branch[1].content


async def until_closed(socket: aiohttp.ClientWebSocketResponse) -> None:
    while (message := await socket.receive()).type is aiohttp.WSMsgType.BINARY:
        pass
    assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)


@pytest.mark.parametrize("sent", [b"\x00", "no json", '["stdin", 3]', '["resize", {"width": "x"}]', "[" * 100_000])
def test_what_is_no_message_of_the_page_ends_the_window(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, sent: str | bytes
) -> None:
    settle_in(tmp_path, monkeypatch)

    async def use(browser: aiohttp.ClientSession, address: str) -> None:
        async with browser.ws_connect(address + "ws", headers=origin_of(address)) as socket:
            await until(socket, "ready")  # by itself, it would stay open
            await (socket.send_bytes(sent) if isinstance(sent, bytes) else socket.send_str(sent))
            await until_closed(socket)

    browse([f"--endpoint={url}"], use)


def test_a_window_whose_chat_cannot_begin_is_closed() -> None:
    async def use(browser: aiohttp.ClientSession, address: str) -> None:
        async with browser.ws_connect(address + "ws", headers=origin_of(address)) as socket:
            await until_closed(socket)

    browse(["--no-such-option"], use)


def test_a_window_is_started_with_the_arguments_of_the_command() -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    given = [
        "--web",
        "--web-port",
        "8123",
        "--system",
        "-x 'y'",
        "--devices",
        "cpu,cpu",
        "--context",
        "512",
        "--kv",
        "q8",
    ]
    args = parser.parse_args([*given, "--draft", "none", "--", "-model"])
    again = parser.parse_args(command.arguments_of(args))
    assert vars(again) == vars(args) | {"web": False, "web_port": 0}
    assert command.arguments_of(parser.parse_args(["--web"])) == command.arguments_of(parser.parse_args([]))


def test_it_is_said_where_the_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    monkeypatch.delitem(sys.modules, "qlocal.chat.web")
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(QLocalError, match=r"needs aiohttp, which is not installed.*") as caught:
        command.run(parser.parse_args(["--web"]))
    assert "qlocal[web]" in str(caught.value.hint)
