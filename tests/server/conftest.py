"""A real server on a real socket, in a thread, with a rank that answers with its prompt and one token a byte."""

from __future__ import annotations

import codecs
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from qlocal.config import ServeOptions
from qlocal.errors import GrammarError, TemplateError, UsageError
from qlocal.formats.base import GenerationDefaults
from qlocal.guard import grammars
from qlocal.guard.errors import JobError
from qlocal.launch import Address, connect, fetch_status, stop
from qlocal.protocol import Vocabulary
from qlocal.schema import EngineState
from qlocal.server.access import AccessRules
from qlocal.server.bind import bind_tcp, bind_unix
from qlocal.server.engine_client import EngineClient, RestartLimits
from qlocal.server.http_server import serve
from qlocal.server.service import Service
from qlocal.server.status import StatusBoard
from qlocal.server.text import ModelText
from qlocal.tokenizer.fill_in import FillIn
from qlocal.tokenizer.tool_calls import ToolFormat
from tests.server.contract import check_response

STOP_ID = 256
TOKEN = "a-token-of-the-tests"
RANK = (sys.executable, "-m", "tests.server.fake_rank")


class ByteDecoder:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(bytes([token_id]))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class ByteCodec:
    """One token a byte; a conversation is the text of its messages. REFUSE makes the template fail."""

    num_tokens = 257
    end_of_turn_ids = (STOP_ID,)
    tool_format: ToolFormat | None = ToolFormat.TAGGED
    fill_in: FillIn | None = None

    def vocabulary(self, stop_ids: Sequence[int]) -> Vocabulary:
        lengths = array("I", [1] * 257).tobytes()
        return Vocabulary(bytes(range(256)) + b"e", lengths, [STOP_ID], list(stop_ids))

    def check_grammar(self, grammar: str) -> None:
        try:
            grammars.check(grammar)
        except JobError as error:
            raise GrammarError(error.message) from error

    def encode_with_specials(self, text: str) -> list[int]:
        return list(text.encode())

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    encode_answer = encode

    def encode_chat(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None
    ) -> list[int]:
        text = "".join(m["content"] or "" for m in messages)
        if "REFUSE" in text:
            raise TemplateError("the template refuses this conversation")
        return self.encode_with_specials(text)

    def stream_decoder(self) -> ByteDecoder:
        return ByteDecoder()

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id % 256])


def open_fake_text(name: str, path: Path) -> ModelText:
    if "headless" in name:
        raise UsageError(f"{name}: config.json is missing")
    if "buggy" in name:
        raise ZeroDivisionError("a mistake of ours")
    codec = ByteCodec()
    if "fills" in name:
        codec.fill_in = FillIn(1, 2, 3, (4,))
    codec.tool_format = {"roomy-llama": ToolFormat.BARE, "roomy-plain": None}.get(name, ToolFormat.TAGGED)
    return ModelText(name, path, codec, (STOP_ID,), GenerationDefaults((STOP_ID,), temperature=0.7, top_k=20))


def resolve_fake(name: str) -> Path:
    if "unknown" in name:
        raise UsageError(f"there is no model '{name}'", hint="Did you mean 'echo'?")
    return Path("/models") / name


def eventually(is_so: Callable[[], bool], otherwise: Callable[[], str] | None = None, timeout_s: float = 20.0) -> None:
    """Wait until something is so; a busy machine may take its time. `otherwise` says what was found instead."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, otherwise() if otherwise else "it did not happen"
        time.sleep(0.01)


@dataclass
class Running:
    """A server of the tests."""

    address: Address
    service: Service

    def client(self, **headers: str) -> httpx.Client:
        client = connect(self.address)
        client.headers.update(headers)
        client.event_hooks["response"].append(check_response)
        return client

    def wait_for(self, state: EngineState, timeout_s: float = 20.0) -> None:
        def is_so() -> bool:
            status = fetch_status(self.address)
            return status is not None and status.state is state

        eventually(is_so, lambda: f"the server is not {state.value} but {fetch_status(self.address)}", timeout_s)


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers: `start(model="echo", tcp=False, ...)`; all are stopped at the end."""
    with ExitStack() as stack:

        def start_one(model: str | None = "echo", *, tcp: bool = False, **engine: Any) -> Running:
            folder = tmp_path / "run"
            bound = ExitStack()  # left by the server's thread, as a process leaves its lock
            listener = bound.enter_context(bind_tcp("127.0.0.1", 0) if tcp else bind_unix(folder / "s.sock"))
            board = StatusBoard()
            engine = {"limits": RestartLimits(count=1), "command": RANK} | engine
            service = Service(EngineClient(board, **engine), board, open_fake_text, resolve_fake, lambda load: None)
            if tcp:
                port = listener.getsockname()[1]
                address = Address(url=f"http://127.0.0.1:{port}", token=TOKEN)
                rules = AccessRules(TOKEN, port, ("https://friend.example",))
            else:
                address, rules = Address(socket=folder / "s.sock"), AccessRules()

            def run() -> None:
                with bound:
                    serve(service, rules, listener, ServeOptions(model=model))

            thread = threading.Thread(target=run)
            thread.start()
            stack.callback(thread.join, 10)
            stack.callback(stop, address)
            running = Running(address, service)
            if model == "echo":
                running.wait_for(EngineState.READY)
            return running

        yield start_one


@pytest.fixture
def server(start: Start) -> Running:
    """A server with the model `echo` ready, on a Unix socket."""
    return start()
