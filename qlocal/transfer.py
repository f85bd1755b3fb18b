"""Bytes from the hub over HTTPS, and from nowhere else.

Every hop of a redirect is looked at before it is asked, the token goes to its own host alone, nothing is decompressed,
and no more is written than was announced. What the bytes mean, and whether they are right, is `hub.py`'s.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import httpx

import qlocal
from qlocal.clean import clean_line
from qlocal.errors import FormatError, ServerError, UsageError

DEFAULT_ENDPOINT = "https://huggingface.co"
TRUSTED_DOMAINS = ("huggingface.co", "hf.co")
"""Where the hub itself, and whatever mirrors it, keep large files; the endpoint's own host comes to them."""
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
MAX_HOPS = 5
MAX_ATTEMPTS = 5
MAX_LISTING_BYTES = 16 << 20
CHUNK_BYTES = 1 << 20
WAIT_S = 1.0
TIMEOUT = httpx.Timeout(60.0, connect=20.0)
AGAIN = "Pull again: it continues where it stopped."

OnBytes = Callable[[int], None]
"""Called with the number of bytes that have come."""


def check_endpoint(endpoint: str) -> None:
    """Raise UsageError for an address that is neither https nor this machine."""
    parts = urlsplit(endpoint)
    is_local = parts.scheme == "http" and parts.hostname in LOOPBACK_HOSTS
    if not (parts.scheme == "https" or is_local) or not parts.hostname or "@" in parts.netloc:
        raise UsageError(f"hub_endpoint is '{endpoint}', expected an https address")


class Transfer:
    """A connection to one hub. `with Transfer(endpoint) as hub:` closes it at the end."""

    def __init__(self, endpoint: str) -> None:
        check_endpoint(endpoint)
        self._endpoint = urlsplit(endpoint)
        self._token = _token(endpoint)
        headers = {"Accept-Encoding": "identity", "User-Agent": f"qlocal/{qlocal.__version__}"}
        self._client = httpx.Client(follow_redirects=False, timeout=TIMEOUT, headers=headers)

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def listing(self, path: str, repository: str) -> bytes:
        """Return a short answer of the hub; ServerError for one of any other kind."""
        try:
            with self._answer(path, repository, start=0) as answer:
                if answer.status_code != httpx.codes.OK:
                    raise ServerError(f"{repository}: the hub answered {answer.status_code}", hint=AGAIN)
                content = b""
                for part in answer.iter_raw(CHUNK_BYTES):
                    content += part
                    if len(content) > MAX_LISTING_BYTES:
                        raise ServerError(f"{repository}: the hub lists more than {MAX_LISTING_BYTES} bytes")
                return content
        except httpx.HTTPError as error:
            raise _unreachable(repository, error) from error

    def fetch(self, path: str, repository: str, size: int, growing: BinaryIO, on_bytes: OnBytes) -> None:
        """Append to `growing` what is missing of `size` bytes, and go on after a transfer that broke off.

        FormatError when more comes than was listed, ServerError when it does not come.
        """
        failed: Exception = ServerError(f"{repository}: nothing came")
        attempts_left = MAX_ATTEMPTS
        while (before := growing.seek(0, os.SEEK_END)) != size and attempts_left:
            if attempts_left < MAX_ATTEMPTS:
                time.sleep(WAIT_S)
            if before > size:
                before = growing.truncate(0)
            try:
                with self._answer(path, repository, start=before) as answer:
                    self._append(answer, before, size, growing, on_bytes, path)
            except httpx.HTTPError as error:
                failed = error
            came = growing.seek(0, os.SEEK_END) - before
            attempts_left = MAX_ATTEMPTS - 1 if came > CHUNK_BYTES else attempts_left - 1
        if before != size:
            raise _unreachable(repository, failed) from failed

    def _append(
        self, answer: httpx.Response, start: int, size: int, growing: BinaryIO, on_bytes: OnBytes, path: str
    ) -> None:
        name = clean_line(path.rpartition("/")[2])
        if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE or answer.status_code == httpx.codes.OK:
            start = growing.truncate(0)  # it begins anew, whatever was asked for
            growing.seek(0)
        elif _first_byte(answer) != start:
            raise ServerError(
                f"{name}: the hub sends bytes from {_first_byte(answer)}, asked for were those from {start}"
            )
        if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return
        for part in answer.iter_raw(CHUNK_BYTES):
            start += len(part)
            if start > size:
                growing.truncate(0)
                raise FormatError(f"{name}: more than the {size} bytes come that the hub lists")
            growing.write(part)
            on_bytes(len(part))

    @contextmanager
    def _answer(self, path: str, repository: str, start: int) -> Iterator[httpx.Response]:
        """Ask for `path`, follow the redirects that may be followed, and give the final answer."""
        url = f"{self._endpoint.scheme}://{self._endpoint.netloc}{self._endpoint.path.rstrip('/')}{quote(path, '/?=&')}"
        for _ in range(MAX_HOPS):
            parts = self._checked(url)
            headers = {"Range": f"bytes={start}-"} if start else {}
            if self._token is not None and _origin(parts) == _origin(self._endpoint):
                headers["Authorization"] = f"Bearer {self._token}"
            with self._client.stream("GET", url, headers=headers) as answer:
                if answer.has_redirect_location:
                    url = urljoin(url, answer.headers["location"])
                    continue
                _check_status(answer, repository)
                if answer.headers.get("content-encoding", "identity") != "identity":
                    raise ServerError(f"{parts.hostname}: the answer is compressed, which was not asked for")
                yield answer
                return
        raise ServerError(f"{repository}: the hub redirects more than {MAX_HOPS} times")

    def _checked(self, url: str) -> SplitResult:
        """Return the parts of an address that may be asked; ServerError for every other one."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise ServerError(f"the hub redirects to an address that is none: {clean_line(url[:120])}") from error
        if _origin(parts) == _origin(self._endpoint) and "@" not in parts.netloc:
            return parts
        is_trusted = any(host == domain or host.endswith("." + domain) for domain in TRUSTED_DOMAINS)
        if parts.scheme != "https" or not is_trusted or port not in (None, 443) or "@" in parts.netloc:
            raise ServerError(
                f"the hub redirects to {clean_line(url[:120])}, which is not one of its own hosts",
                hint=f"Fetched is over https from {self._endpoint.hostname} and {', '.join(TRUSTED_DOMAINS)} alone.",
            )
        return parts


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)


def _token(endpoint: str) -> str | None:
    """Return the user's token: the stored one is huggingface.co's; another hub gets what HF_TOKEN says for it."""
    given = os.environ.get("HF_TOKEN")
    if given or endpoint.rstrip("/") != DEFAULT_ENDPOINT:
        return given or None
    from huggingface_hub import get_token  # 0.2 s, needed by `pull` alone

    return get_token()


def _first_byte(answer: httpx.Response) -> int | None:
    """Return where the bytes of a part begin, as Content-Range tells."""
    first = answer.headers.get("content-range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isascii() and first.isdigit() and len(first) < 20 else None


def _check_status(answer: httpx.Response, repository: str) -> None:
    """Raise ServerError for an answer that is neither the file nor about the range that was asked for."""
    status, code = answer.status_code, answer.headers.get("x-error-code", "")
    if status in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT, httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE):
        return
    if code == "GatedRepo":
        raise ServerError(
            f"{repository} is gated: its makers ask you to accept their licence",
            hint="Accept it on the hub's page and set HF_TOKEN.",
        )
    if status in (401, 403, 404):
        raise ServerError(
            f"the hub has no {repository} at this revision, or not for you", hint="A private one needs HF_TOKEN."
        )
    raise ServerError(f"{repository} could not be fetched: the hub answered {status}", hint=AGAIN)


def _unreachable(repository: str, error: Exception) -> ServerError:
    reason = clean_line(str(error)[:200]) or type(error).__name__
    return ServerError(f"{repository} could not be fetched: {reason}", hint=AGAIN)
