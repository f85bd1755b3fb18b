"""A server in a thread whose engine is real: a rank process, a guard, a checkpoint on disk."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlocal.config import EngineOptions, ServeOptions
from qlocal.guard.client import Guard
from qlocal.launch import Address, stop
from qlocal.schema import EngineState
from qlocal.server.access import AccessRules
from qlocal.server.bind import bind_unix
from qlocal.server.engine_client import EngineClient
from qlocal.server.http_server import serve
from qlocal.server.open_text import text_opener
from qlocal.server.preflight import check_plan
from qlocal.server.seen_templates import SeenTemplates
from qlocal.server.service import Service
from qlocal.server.status import StatusBoard
from tests.server.conftest import Running

LOAD_TIMEOUT_S = 120.0
"""Torch is imported by a process of its own, on a machine that may be busy."""
TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n<tool_call> {% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass
class RealServer(Running):
    """Its guard is its own: other servers of the same tests have others."""

    guard: Guard


@contextmanager
def real_server(folder: Path, path: Path, **options: Any) -> Iterator[RealServer]:
    """Serve the checkpoint at `path` on a socket in `folder`, ready. options: of the engine."""
    with ExitStack() as stack:
        guard = stack.enter_context(Guard())
        bound = ExitStack()  # left by the server's thread, as a process leaves its lock
        listener = bound.enter_context(bind_unix(folder / "run" / "s.sock"))
        board = StatusBoard()
        seen = SeenTemplates(folder / "seen_templates")
        service = Service(EngineClient(board), board, text_opener(guard), lambda name: Path(name), check_plan, seen)
        engine = EngineOptions(**{"threads": 1, **options})

        def run() -> None:
            with bound:
                serve(service, AccessRules(), listener, ServeOptions(model=str(path), engine=engine))

        thread = threading.Thread(target=run)
        thread.start()
        address = Address(socket=folder / "run" / "s.sock")
        stack.callback(thread.join, 30)
        stack.callback(stop, address)
        running = RealServer(address, service, guard)
        running.wait_for(EngineState.READY, LOAD_TIMEOUT_S)
        yield running
