"""A small OpenAI-compatible server on the loopback, scripted by what the last message says.

It has our own routes too; its status events show a load and then end, as if the server had died.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

LONG_ANSWER_TOKENS = 2000


class Handler(BaseHTTPRequestHandler):
    """Commands: `cut` ends without [DONE], `refuse` is a 400, `error` comes in the stream, `slow` never ends soon."""

    protocol_version = "HTTP/1.1"
    requests: ClassVar[list[dict[str, Any]]] = []
    loads: ClassVar[list[dict[str, Any]]] = []
    model: ClassVar[str | None] = None
    disconnects: ClassVar[list[str]] = []
    echoes_key: ClassVar[bool] = False

    def log_message(self, *_args: Any) -> None:
        """Stay quiet."""

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._json(200, {"data": [{"id": "fake-model", "max_model_len": 2048}]})
        elif self.path == "/qlocal/status":
            self._json(200, _status("ready"))
        elif self.path == "/qlocal/events":
            self._send_events()
        else:
            self._json(404, {"error": {"message": "no such route", "type": "invalid_request_error"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.startswith("/qlocal/"):
            self._own_route(body)
            return
        Handler.requests.append({**body, "authorization": self.headers.get("Authorization")})
        said = body["messages"][-1]["content"]
        if said == "refuse":
            message = "The prompt has 3000 tokens, the context holds 2048"
            if Handler.echoes_key:
                message = f"wrong: {self.headers['Authorization']}"
            self._json(400, {"error": {"message": message, "code": "context_length_exceeded"}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            self._stream(said, len(Handler.requests))
        except (BrokenPipeError, ConnectionResetError):
            Handler.disconnects.append(said)

    def _own_route(self, body: dict[str, Any]) -> None:
        if self.path == "/qlocal/load":
            Handler.loads.append(body)
            Handler.model = body["model"]
            self._json(202, _status("loading"))
        else:
            self._json(200, {"prompt_tokens": 7 * len(body["messages"]), "max_context": 2048})

    def _send_events(self) -> None:
        """Loading, ready, and then the server goes away."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self._event(_status("loading") | {"progress": {"stage": "loading weights", "done": 3, "total": 4}})
        self._event(_status("ready"))

    def _stream(self, said: str, number: int) -> None:
        if said == "slow":
            for i in range(LONG_ANSWER_TOKENS):
                self._delta(f"word{i} ")
                time.sleep(0.01)
        for piece in ("Answer ", f"{number} ", "to ", said, ".\n\n", "中文 \u2028 ok"):
            self._delta(piece)
        if said == "error":
            self._event({"error": {"message": "the engine died", "type": "server_error"}})
            return
        if said == "cut":
            return
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._event({"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 6}})
        self.wfile.write(b": ping\r\n\r\ndata: [DONE]\r\n\r\n")

    def _delta(self, text: str) -> None:
        self._event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})

    def _event(self, body: dict[str, Any]) -> None:
        # Unescaped, so that U+2028 is in the bytes as other servers send it.
        self.wfile.write(f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode())
        self.wfile.flush()

    def _json(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _status(state: str) -> dict[str, Any]:
    return {"state": state, "model": Handler.model, "max_context": 2048, "version": "0", "pid": 1}


@contextmanager
def fake_server() -> Iterator[str]:
    """Run the server in a thread; gives its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Handler.requests.clear()
    Handler.loads.clear()
    Handler.model = "tiny"
    Handler.disconnects.clear()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
