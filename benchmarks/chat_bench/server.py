"""An OpenAI-compatible server that streams so many tokens a second of prose, a list, code and a table, for ever."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

PROSE = "The **river** runs through `valleys` that nobody has named, and 河流 goes on to the sea. "
LIST_ITEM = "- an item with **bold** text and a [link](http://example.org)\n"
CODE_LINE = "    value = function(argument, 42)  # a comment\n"
TABLE_ROW = "| a cell | 12.5 | words | 中文 |\n"
KINDS = {
    "prose": ("\n\n", (PROSE * 4 + "\n\n") * 9),
    "list": ("\n\n", LIST_ITEM * 90),
    "fence": ("\n\n```python\n", CODE_LINE * 100 + "```\n"),
    "table": ("\n\n| a | b | c | d |\n|---|--:|---|---|\n", TABLE_ROW * 120),
}
TOKEN_CHARS = 4


def tokens() -> Iterator[str]:
    """Yield pieces as a model writes them, kind after kind, for ever."""
    while True:
        for opening, text in KINDS.values():
            whole = opening + text
            for i in range(0, len(whole), TOKEN_CHARS):
                yield whole[i : i + TOKEN_CHARS]


async def _stream(writer: asyncio.StreamWriter, tokens_per_s: float) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
    loop = asyncio.get_running_loop()
    began = loop.time()
    for i, token in zip(count(), tokens(), strict=False):
        await asyncio.sleep(max(0.0, began + i / tokens_per_s - loop.time()))
        chunk = {"choices": [{"index": 0, "delta": {"content": token}, "finish_reason": None}]}
        writer.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await writer.drain()


async def _serve(port: multiprocessing.Queue[int], tokens_per_s: float) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"POST"):
                await _stream(writer, tokens_per_s)
            else:
                body = b'{"data": [{"id": "fake-model", "max_model_len": 131072}]}'
                length = f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + length + body)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port.put(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def _run(port: multiprocessing.Queue[int], tokens_per_s: float) -> None:
    asyncio.run(_serve(port, tokens_per_s))


@contextmanager
def streaming_server(tokens_per_s: float) -> Iterator[str]:
    """Run the server in a process of its own; gives its URL."""
    context = multiprocessing.get_context("spawn")
    port: multiprocessing.Queue[int] = context.Queue()
    process = context.Process(target=_run, args=(port, tokens_per_s), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port.get(timeout=30)}"
    finally:
        process.kill()
        process.join()
