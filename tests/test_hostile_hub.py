"""A hub that lies: whatever it answers, nothing wrong gets a name, nothing is asked of strangers, the token stays."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qlocal import hub, transfer
from qlocal.config import Settings
from qlocal.errors import FormatError, PlanError, ServerError, UsageError
from qlocal.transfer import Transfer
from tests.fake_hub import COMMIT, FakeHub, running

CONTENT = bytes(range(256)) * 300
NAME = "model.safetensors"
TOKEN = "hf_secret"
Answer = Callable[["Request"], None]


class Request:
    """One request for the file, and the means to answer it in any way."""

    def __init__(self, handler: BaseHTTPRequestHandler, stranger: str) -> None:
        self.handler = handler
        self.stranger = stranger
        self.start = int((handler.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])

    def send(self, status: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.send_header("Content-Length", str(len(body) if length is None else length))
        self.handler.end_headers()
        self.handler.wfile.write(body)
        self.handler.close_connection = True

    def redirect(self, location: str) -> None:
        self.send(302, Location=location)


def endless(request: Request) -> None:
    request.handler.send_response(200)
    request.handler.end_headers()
    request.handler.close_connection = True
    try:
        for _ in range(1 << 12):
            request.handler.wfile.write(bytes(1 << 16))
    except OSError:
        return
    raise AssertionError("256 MB were taken for 77 KB")


def hang_up(request: Request) -> None:
    request.handler.close_connection = True


def flipped(request: Request) -> None:
    request.send(200, CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))


FILES: dict[str, tuple[Answer, str]] = {
    "redirect to another host": (lambda r: r.redirect(r.stranger + "/x"), "not one of its own hosts"),
    "redirect to a file": (lambda r: r.redirect("file:///etc/passwd"), "not one of its own hosts"),
    "redirect to ftp": (lambda r: r.redirect("ftp://huggingface.co/x"), "not one of its own hosts"),
    "downgrade to http": (lambda r: r.redirect("http://huggingface.co/x"), "not one of its own hosts"),
    "the cloud's metadata": (lambda r: r.redirect("http://169.254.169.254/latest"), "not one of its own hosts"),
    "a name that begins alike": (lambda r: r.redirect("https://huggingface.co.evil.example/x"), "not one of its own"),
    "a name that ends alike": (lambda r: r.redirect("https://evilhuggingface.co/x"), "not one of its own hosts"),
    "a user before the host": (lambda r: r.redirect("https://huggingface.co@evil.example/x"), "not one of its own"),
    "a user at the right host": (lambda r: r.redirect("https://a:b@huggingface.co/x"), "not one of its own hosts"),
    "another port": (lambda r: r.redirect("https://huggingface.co:8443/x"), "not one of its own hosts"),
    "a port that is none": (lambda r: r.redirect("https://huggingface.co:99999/x"), "an address that is none"),
    "brackets that do not close": (lambda r: r.redirect("https://[::1/x"), "an address that is none|could not be"),
    "escapes in an address": (lambda r: r.redirect("https://evil.example/\x1b]0;x"), "could not be fetched"),
    "a loop": (lambda r: r.redirect(r.handler.path), "redirects more than 5 times"),
    "a flipped bit": (flipped, "SHA-256 is"),
    "a short body": (lambda r: r.send(200, CONTENT[:100], length=len(CONTENT)), "could not be fetched"),
    "a body that ends early": (lambda r: r.send(200, CONTENT[:-1]), "could not be fetched"),
    "a body that is too long": (lambda r: r.send(200, CONTENT + b"x"), "more than the 76800 bytes come"),
    "an endless body": (endless, "more than the 76800 bytes come"),
    "a range that cannot be": (lambda r: r.send(416), "could not be fetched"),
    "bytes of another place": (lambda r: r.send(206, CONTENT, Content_Range="bytes 7-9/10"), "sends bytes from 7"),
    "a range that is none": (lambda r: r.send(206, CONTENT, Content_Range="bytes x"), "sends bytes from None"),
    "a part without its range": (lambda r: r.send(206, CONTENT), "sends bytes from None"),
    "a compressed file": (lambda r: r.send(200, gzip.compress(CONTENT), Content_Encoding="gzip"), "is compressed"),
    "a bomb": (lambda r: r.send(200, gzip.compress(bytes(1 << 24)), Content_Encoding="gzip"), "is compressed"),
    "an error": (lambda r: r.send(500), "the hub answered 500"),
    "a page": (lambda r: r.send(404, b"<html>\x1b[2J"), "has no maker/model"),
    "a gate": (lambda r: r.send(403, X_Error_Code="GatedRepo"), "is gated"),
    "teapot": (lambda r: r.send(418), "the hub answered 418"),
    "nothing new": (lambda r: r.send(304), "the hub answered 304"),
    "nobody": (hang_up, "could not be fetched"),
}  # fmt: skip


def listed(**changes: Any) -> dict[str, Any]:
    """Return the list of files; `changes` are those of its one entry."""
    entry = {"rfilename": NAME, "size": len(CONTENT), "blobId": "0" * 40,
             "lfs": {"sha256": hashlib.sha256(CONTENT).hexdigest()}}  # fmt: skip
    return {"sha": COMMIT, "siblings": [entry | changes]}


LISTINGS: dict[str, tuple[bytes | dict[str, Any], str]] = {
    "no JSON": (b"<html>", "not valid JSON"),
    "a list": (b"[]", "expected an object"),
    "no commit": ({"siblings": []}, "names no commit"),
    "a commit that leads elsewhere": ({"sha": "../../evil", "siblings": []}, "names no commit"),
    "no files": ({"sha": COMMIT}, "or no files"),
    "a file that is a number": ({"sha": COMMIT, "siblings": [7]}, "expected the name and size"),
    "a negative size": (listed(size=-1), "expected the name and size"),
    "a size of 2^60": (listed(size=1 << 60), "expected the name and size"),
    "a size that is true": (listed(size=True), "expected the name and size"),
    "a name that is a number": (listed(rfilename=3), "expected the name and size"),
    "a name above the folder": (listed(rfilename="../" + NAME), "has no safetensors or GGUF files"),
    "an absolute name": (listed(rfilename="/tmp/" + NAME), "has no safetensors or GGUF files"),
    "backslashes": (listed(rfilename="..\\" + NAME), "has no safetensors or GGUF files"),
    "escapes in the name": (listed(rfilename="\x1b]0;x\x07.safetensors"), "has no safetensors or GGUF files"),
    "a NUL in the name": (listed(rfilename="a\0.safetensors"), "has no safetensors or GGUF files"),
    "a file twice": (listed() | {"siblings": listed()["siblings"] * 2}, "lists a file twice"),
    "no hash": (listed(lfs=None, blobId=None), "lists no hash"),
    "a hash that is none": (listed(lfs={"sha256": "../../x"}, blobId="y"), "lists no hash"),
    "nested too deeply": (b'{"a":' + b"[" * 9999, "nested too deeply"),
    "too much": (b" " * (transfer.MAX_LISTING_BYTES + 1), "lists more than"),
    "more than any disk": (listed(size=1 << 42), "more bytes in"),
}


@pytest.fixture
def stranger() -> Iterator[FakeHub]:
    """A host that nobody has reason to ask."""
    with running(FakeHub({})) as found:
        yield found


@contextmanager
def hostile(listing: bytes | dict[str, Any], answer: Answer, stranger: str, tokens: list[str | None]) -> Iterator[str]:
    """Serve a list of files, and what `answer` makes of a request for one; gives the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            tokens.append(self.headers.get("Authorization"))
            if self.path.startswith("/api/"):
                content = listing if isinstance(listing, bytes) else json.dumps(listing).encode()
                Request(self, stranger).send(200, content)
            else:
                answer(Request(self, stranger))

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def good(request: Request) -> None:
    request.send(206 if request.start else 200, CONTENT[request.start :],
                 Content_Range=f"bytes {request.start}-{len(CONTENT) - 1}/{len(CONTENT)}")  # fmt: skip


@pytest.fixture
def pull(tmp_path: Path, stranger: FakeHub, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.setattr(transfer, "WAIT_S", 0.0)
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def call(listing: bytes | dict[str, Any] | None = None, answer: Answer = good) -> Path:
        tokens: list[str | None] = []
        with hostile(listed() if listing is None else listing, answer, stranger.url, tokens) as url:
            settings = Settings(
                home=tmp_path / "models", runtime=tmp_path / "run", sessions=tmp_path / "kv", hub_endpoint=url
            )
            try:
                return hub.pull("maker/model", settings=settings)
            finally:
                assert set(tokens) == {f"Bearer {TOKEN}"}, "the hub itself is given the token"

    return call


def refuses(pull: Callable[..., Path], home: Path, message: str, *arguments: Any) -> None:
    """Hold a pull against what every refusal is, and let the next one succeed."""
    with pytest.raises((FormatError, PlanError, ServerError, UsageError), match=message) as caught:
        pull(*arguments)
    assert str(caught.value).isprintable()
    assert not (home / "model").exists(), "a folder gets its name when every hash is right"
    assert not (home / "model.partial" / NAME).exists()
    assert (pull() / NAME).read_bytes() == CONTENT


@pytest.mark.parametrize("case", FILES)
def test_a_hub_that_misbehaves_with_a_file_is_refused(
    pull: Callable[..., Path], stranger: FakeHub, tmp_path: Path, case: str
) -> None:
    answer, message = FILES[case]
    refuses(pull, tmp_path / "models", message, listed(), answer)
    assert not stranger.requests


@pytest.mark.parametrize("case", LISTINGS)
def test_a_hub_that_misbehaves_with_its_list_is_refused(pull: Callable[..., Path], tmp_path: Path, case: str) -> None:
    listing, message = LISTINGS[case]
    refuses(pull, tmp_path / "models", message, listing)
    assert {path.name for path in tmp_path.iterdir()} == {"models"}, "nothing is written anywhere else"


def test_what_lies_there_is_hashed_again_also_when_the_hub_sends_the_rest(
    pull: Callable[..., Path], tmp_path: Path
) -> None:
    part = tmp_path / "models" / "model.partial" / f"{NAME}.{hashlib.sha256(CONTENT).hexdigest()[:16]}.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"\xff" + CONTENT[1:50_000])
    refuses(pull, tmp_path / "models", "SHA-256 is")


def test_a_hub_that_ignores_the_range_or_refuses_it_sends_the_whole_file(
    pull: Callable[..., Path], tmp_path: Path
) -> None:
    part = tmp_path / "models" / "model.partial" / f"{NAME}.{hashlib.sha256(CONTENT).hexdigest()[:16]}.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:50_000])
    refused: list[int] = []

    def answer(request: Request) -> None:
        if request.start:
            refused.append(request.start)
            request.send(416)
        else:
            request.send(200, CONTENT)

    assert (pull(listed(), answer) / NAME).read_bytes() == CONTENT
    assert refused == [50_000]


def test_a_redirect_within_the_hub_is_followed_with_the_token(pull: Callable[..., Path]) -> None:
    def answer(request: Request) -> None:
        good(request) if request.handler.path == "/elsewhere" else request.redirect("/elsewhere")

    assert (pull(listed(), answer) / NAME).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "url",
    ["https://huggingface.co/x", "https://cdn-lfs.huggingface.co/x", "https://cdn-lfs-us-1.hf.co/x?a=b",
     "https://cas-bridge.xethub.hf.co/x", "https://huggingface.co:443/x"],
)  # fmt: skip
def test_the_hubs_own_stores_are_asked_without_the_token(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with Transfer("https://hub.example/") as connection:
        parts = connection._checked(url)
        assert transfer._origin(parts) != transfer._origin(connection._endpoint)


def test_the_stored_token_goes_to_its_own_hub_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    assert transfer._token("https://huggingface.co") == TOKEN
    assert transfer._token("https://mirror.example") is None


@pytest.mark.parametrize("endpoint", ["https://", "https://a@huggingface.co", "http://huggingface.co", "//x", ""])
def test_an_endpoint_that_is_no_https_address_is_refused(endpoint: str) -> None:
    with pytest.raises(UsageError, match="expected an https address"):
        Transfer(endpoint)
