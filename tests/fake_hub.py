"""A hub on the loopback with one repository; it can be told to misbehave."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".gguf", ".bin")


@dataclass
class FakeHub:
    """files: name -> content. wrong_bytes: files whose content differs from what is listed.

    cut_after: bytes after which the first transfer of a file breaks off. ranges: the Range headers that came.
    """

    files: dict[str, bytes]
    url: str = ""
    wrong_bytes: set[str] = field(default_factory=set)
    cut_after: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    listed_sizes: dict[str, int] = field(default_factory=dict)
    status: int = 200

    def listing(self) -> dict[str, Any]:
        siblings = []
        for name, content in self.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": self.listed_sizes.get(name, len(content))}
            entry["blobId"] = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            if name.endswith(LARGE):
                entry["lfs"] = {"sha256": sha256(content), "size": entry["size"], "pointerSize": 130}
            siblings.append(entry)
        return {"id": "maker/model", "modelId": "maker/model", "sha": COMMIT, "siblings": siblings, "tags": []}

    def content(self, name: str) -> bytes:
        content = self.files[name]
        return content[:-1] + bytes([content[-1] ^ 1]) if name in self.wrong_bytes else content


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def running(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve the hub on a free port; sets its url."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def answer(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append((self.command, path))
            if hub.status != 200:
                self.reply(hub.status, b"", {"X-Error-Code": "RepoNotFound"}, with_body)
            elif path.startswith("/api/models/maker/model"):
                self.reply(200, json.dumps(hub.listing()).encode(), {"Content-Type": "application/json"}, with_body)
            elif path.startswith(f"/maker/model/resolve/{COMMIT}/") and path.rpartition("/")[2] in hub.files:
                self.send_file(path.rpartition("/")[2], with_body)
            else:
                self.reply(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)

        def send_file(self, name: str, with_body: bool) -> None:
            content = hub.content(name)
            etag = sha256(hub.files[name]) if name.endswith(LARGE) else hashlib.sha1(hub.files[name]).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            wanted = self.headers.get("Range") if with_body else None
            if wanted:
                hub.ranges.append(wanted)
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.reply(206, content[start:], headers, with_body)
                return
            cut = hub.cut_after.pop(name, None) if with_body else None
            self.reply(200, content, headers, with_body, cut)

        def reply(
            self, status: int, body: bytes, headers: dict[str, str], with_body: bool, cut: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body[:cut])
            if cut is not None:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
