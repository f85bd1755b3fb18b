"""Who gets through, how much of what, and for how long."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.server.conftest import TOKEN, Running, Start, eventually

HOSTS = {
    "localhost:{port}": True,
    "127.0.0.1:{port}": True,
    "[::1]:{port}": True,
    "localhost": False,
    "localhost:1": False,
    "evil.example:{port}": False,
    "127.0.0.1.evil.example:{port}": False,
    "127.0.0.1:{port}.evil.example": False,
}
ORIGINS = {
    None: True,
    "https://friend.example": True,
    "https://evil.example": False,
    "null": False,
    "http://127.0.0.1:{port}": False,
    "https://friend.example.evil.example": False,
}
TYPES = {"application/json; charset=utf-8": True, "text/plain": False, "application/x-www-form-urlencoded": False}
BODY = b'{"messages": [{"role": "user", "content": "a"}]}'


@pytest.fixture
def tcp(start: Start) -> Running:
    return start(tcp=True)


@pytest.fixture
def dial(tcp: Running) -> Iterator[socket.socket]:
    with _dial(tcp) as connection:
        yield connection


def _dial(server: Running) -> socket.socket:
    host, port = server.address.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def reply(connection: socket.socket) -> bytes:
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    return data


def test_144_hosts_origins_and_content_types(tcp: Running) -> None:
    port = tcp.address.url.rpartition(":")[2]
    cases = 0
    with tcp.client() as client:
        for host, host_ok in HOSTS.items():
            for origin, origin_ok in ORIGINS.items():
                for kind, kind_ok in TYPES.items():
                    headers = {"Host": host.format(port=port), "Content-Type": kind}
                    if origin is not None:
                        headers["Origin"] = origin.format(port=port)
                    response = client.post("/qlocal/count", content=BODY, headers=headers)
                    expected = 403 if not (host_ok and origin_ok) else 200 if kind_ok else 415
                    assert response.status_code == expected, (host, origin, kind, response.text)
                    allowed = response.headers.get("access-control-allow-origin")
                    assert allowed == (origin if host_ok and origin == "https://friend.example" else None)
                    cases += 1
    assert cases == 144


def test_what_is_no_http_is_answered_like_any_other_error(dial: socket.socket) -> None:
    dial.sendall(b"\x16\x03\x01 hello\r\n\r\n")
    head, _, body = reply(dial).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400") and b"application/json" in head
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(("size", "status"), [(8 << 10, b"200"), (17 << 10, b"431"), (90 << 10, b"4")])
def test_headers_of_more_than_16_kib_are_refused(dial: socket.socket, size: int, status: bytes) -> None:
    port = dial.getpeername()[1]
    head = (
        f"GET /v1/models HTTP/1.1\r\nHost: localhost:{port}\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n"
    )
    dial.sendall(head.encode() + b"X: " + b"a" * size + b"\r\n\r\n")
    assert reply(dial).startswith(b"HTTP/1.1 " + status)


def test_200_clients_that_never_finish_their_headers_hold_nobody_up(
    tcp: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlocal.server.http_server.HEADER_TIMEOUT_S", 1.0)
    with ExitStack() as stack, tcp.client() as client:
        slow = [stack.enter_context(_dial(tcp)) for _ in range(200)]
        for connection in slow:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nX: ")
        assert client.post("/qlocal/count", content=BODY, headers={"Content-Type": "application/json"}).is_success
        assert all(reply(connection) == b"" for connection in slow)
        assert client.get("/v1/models").status_code == 200


def test_connections_beyond_the_limit_are_told_so_and_places_come_back(
    tcp: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlocal.server.http_server.MAX_CONNECTIONS", 8)
    with ExitStack() as stack:
        held = [stack.enter_context(_dial(tcp)) for _ in range(8)]

        def refused() -> bool:
            with _dial(tcp) as extra:
                extra.settimeout(0.3)
                try:
                    answer = reply(extra)
                except TimeoutError:  # the server has not seen all of the others yet
                    return False
                return answer.startswith(b"HTTP/1.1 503") and json.loads(answer.split(b"\r\n\r\n")[1])["error"] != {}

        eventually(refused)
        for connection in held:
            connection.close()

        def is_served() -> bool:
            with tcp.client() as client:
                return client.get("/v1/models").status_code == 200

        eventually(is_served)


def test_a_body_that_never_ends_is_given_up(tcp: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlocal.server.app.BODY_TIMEOUT_S", 0.2)
    with _dial(tcp) as connection:
        port = connection.getpeername()[1]
        connection.sendall(
            f"POST /qlocal/count HTTP/1.1\r\nHost: localhost:{port}\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{".encode()
        )
        answer = reply(connection)
    assert answer.startswith(b"HTTP/1.1 408") and b'"error"' in answer


def test_logs_hold_neither_tokens_nor_what_is_said(tcp: Running, caplog: pytest.LogCaptureFixture) -> None:
    secret = "what only the user knows"
    message = {"role": "user", "content": secret}
    with caplog.at_level(logging.DEBUG), tcp.client() as client:
        url = "/v1/chat/completions"
        client.post(url, json={"messages": [message], "wish": secret, secret: 1})
        client.post(url, json={"messages": [{**message, "content": secret + " REFUSE"}]})
        client.post(url, json={"messages": [{**message, "content": secret + " ERROR"}]})
        client.post(url, json={"messages": [{**message, "role": secret}]})
        client.post(url, content=secret.encode())
        client.get("/v1/models", headers={"Authorization": f"Bearer {TOKEN}-wrong"})
        client.get(f"/v1/models/{TOKEN}")
    text = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("qlocal"))
    assert text and TOKEN not in text
    assert secret not in text.replace("ignored unknown request fields", "").replace(f"'{secret}'", "")
