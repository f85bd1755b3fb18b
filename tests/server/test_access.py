from __future__ import annotations

import socket

import httpx
import pytest

from qlocal.server.access import MAX_BODY_BYTES
from tests.server.conftest import TOKEN, Running, Start

HOSTS = {
    "localhost:{port}": True,
    "127.0.0.1:{port}": True,
    "[::1]:{port}": True,
    "LOCALHOST:{port}": True,
    "localhost": False,
    "localhost:1": False,
    "evil.example:{port}": False,
    "127.0.0.1.evil.example:{port}": False,
    "": False,
}
ORIGINS = {
    None: True,
    "https://friend.example": True,
    "https://evil.example": False,
    "null": False,
    "http://localhost:{port}": False,
    "": False,
}


@pytest.fixture
def tcp(start: Start) -> Running:
    return start(tcp=True)


def test_only_loopback_hosts_and_allowed_origins_get_through(tcp: Running) -> None:
    port = tcp.address.url.rpartition(":")[2]
    with tcp.client() as client:
        for host, host_ok in HOSTS.items():
            for origin, origin_ok in ORIGINS.items():
                headers = {"Host": host.format(port=port)}
                if origin is not None:
                    headers["Origin"] = origin.format(port=port)
                response = client.get("/v1/models", headers=headers)
                expected = 200 if host_ok and origin_ok else 403
                assert response.status_code == expected, (host, origin, response.text)
                assert expected == 200 or response.json()["error"]["type"] == "permission_error"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_other_content_types_are_refused(tcp: Running, kind: str) -> None:
    with tcp.client() as client:
        response = client.post("/v1/chat/completions", content=b'{"messages": []}', headers={"Content-Type": kind})
    assert response.status_code == 415 and "application/json" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Basic {TOKEN}"}, {"X-Api-Key": "no"}]
)
def test_wrong_token_is_refused_for_every_route(tcp: Running, headers: dict[str, str]) -> None:
    with httpx.Client(base_url=tcp.address.url) as client:
        for path in ("/v1/models", "/health", "/qlocal/status", "/nothing"):
            response = client.get(path, headers=headers)
            assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"


def test_token_is_taken_as_bearer_and_as_api_key(tcp: Running) -> None:
    with httpx.Client(base_url=tcp.address.url) as client:
        assert client.get("/v1/models", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200
        assert client.get("/v1/models", headers={"X-Api-Key": TOKEN}).status_code == 200


def test_preflight_of_an_allowed_page_needs_no_token(tcp: Running) -> None:
    with httpx.Client(base_url=tcp.address.url) as client:
        response = client.options("/v1/chat/completions", headers={"Origin": "https://friend.example"})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://friend.example"


def test_body_over_the_limit_is_refused_announced_or_not(server: Running) -> None:
    with server.client() as client:
        response = client.post("/v1/chat/completions", content=b" " * (MAX_BODY_BYTES + 1), headers=JSON)
        assert response.status_code == 413

        def chunks() -> object:
            for _ in range(33):
                yield b" " * (1 << 20)

        response = client.post("/v1/chat/completions", content=chunks(), headers=JSON)  # type: ignore[arg-type]
        assert response.status_code == 413
        assert client.get("/qlocal/status").status_code == 200


JSON = {"Content-Type": "application/json"}


def test_client_that_never_ends_its_headers_is_cut_off(tcp: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlocal.server.http_server.HEADER_TIMEOUT_S", 0.2)
    host, port = tcp.address.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: local")
        assert connection.recv(100) == b""
    with tcp.client() as client:
        assert client.get("/v1/models").status_code == 200


def test_huge_header_is_refused_and_the_server_lives(tcp: Running) -> None:
    host, port = tcp.address.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000)
        assert b"400" in connection.recv(100)
    with tcp.client() as client:
        assert client.get("/v1/models").status_code == 200
