"""Does the server hold under load: many clients, a fifth of them hanging up, some hostile, for very many requests?

    python -m benchmarks.soak                                 200,000 requests, an engine that echoes
    python -m benchmarks.soak --model FILE --requests 2000    a real one

Prints JSON: growth of memory a request (of the server, its engine and its guard together), descriptors, threads, what
is held after the last client, and the 99th percentile of the last tenth beside the first. A request's time is told by
the clock, and as the processor time that server, engine, guard and clients took meanwhile, which is what other work on
the machine does not change: by that one it is judged. Requests before the counted ones warm up. Exit code 1 where a
promise of docs/server.md does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

MAX_GROWTH_BYTES = 1024.0
MAX_P99_RATIO = 1.1
LEAST_WARM_UP, WARM_UP = 1000, 0.05
"""Requests before the counted ones, and as a share of those: caches, threads and allocators fill."""
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["b", "c"]}}, "required": ["a"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
HOSTILE: list[tuple[str, bytes]] = [
    ("/v1/chat/completions", b"{"),
    ("/v1/chat/completions", b"[" * 100_000),
    ("/v1/chat/completions", b'{"messages": []}'),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "\\ud800"}]}'),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "a"}], "n": 1000000}'),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "a"}], "logit_bias": {"999999999": 1}}'),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1e999}'),
    ("/v1/completions", b'{"prompt": [4294967295]}'),
    ("/v1/completions", b'{"prompt": "' + b"x" * 200_000 + b'"}'),
    ("/v1/embeddings", b'{"input": "a"}'),
    ("/qlocal/score", b'{"prompt_ids": [1], "answer_ids": [-1]}'),
    ("/v1/nothing", b"{}"),
    (
        "/v1/chat/completions",
        b'{"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_schema", '
        b'"json_schema": {"name": "a", "schema": {"$ref": "#"}}}}',
    ),
]


@dataclass
class Totals:
    """What happened. latencies: of whole answers, in the order they came: seconds, and processor seconds meanwhile."""

    outcomes: Counter[str] = field(default_factory=Counter)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    done: int = 0


@dataclass(frozen=True)
class Sample:
    """What the server's processes hold after `done` requests. private: bytes, resident and swapped, by process."""

    done: int
    private: dict[str, int]
    descriptors: int
    threads: int
    processor_s: float


class Watched:
    """A server, the processes that it has started, and this one, which is its clients."""

    def __init__(self, process: psutil.Process) -> None:
        self._server = process
        self._pids = [process.pid]

    def sample(self, done: int) -> Sample:
        """Look at what they hold, and which there are."""
        children = self._server.children(recursive=True)
        self._pids = [self._server.pid, *(child.pid for child in children)]
        private = {"server": _private_bytes(self._server.pid)}
        for child in children:
            with suppress(OSError, psutil.NoSuchProcess):
                name = "engine" if any("rank" in part for part in child.cmdline()) else "guard"
                private[name] = private.get(name, 0) + _private_bytes(child.pid)
        return Sample(done, private, self._server.num_fds(), self._server.num_threads(), self.processor_s())

    def processor_s(self) -> float:
        """Return what all of them have computed, those that have ended included."""
        total = time.process_time()
        for pid in self._pids:
            with suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        return total


def _private_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    sizes = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.endswith("kB")}
    return 1024 * (int(sizes["RssAnon"]) + int(sizes["VmSwap"]))


class Client:
    """One connection at a time, spoken to by hand: a library would take more processor time than the server."""

    def __init__(self, path: Path, seed: int, max_tokens: int) -> None:
        self._path = path
        self._random = random.Random(seed)
        self._max_tokens = max_tokens
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def one(self, totals: Totals, watched: Watched, disconnect: float, hostile: float) -> None:
        """Make one request and note what came of it."""
        dice = self._random.random()
        if dice < hostile:
            status = await self._ask(*self._random.choice(HOSTILE))
            totals.outcomes["hostile refused" if 400 <= status < 500 else f"hostile answered {status}"] += 1
        elif dice < hostile + disconnect:
            await self._hang_up()
            totals.outcomes["hung up"] += 1
        else:
            begun, processor_s = time.monotonic(), watched.processor_s()
            status = await self._ask("/v1/chat/completions", self._question())
            totals.latencies.append((time.monotonic() - begun, watched.processor_s() - processor_s))
            totals.outcomes["answered" if status == 200 else f"failed with {status}"] += 1

    def _question(self) -> bytes:
        kinds: list[dict[str, Any]] = [{}, {"stream": True}, {"n": 2}, {"logprobs": True, "top_logprobs": 3}]
        kinds += [{"response_format": FORMAT}, {"stream": True, "stop": ["x", "q"]}]
        words = " ".join(self._random.choice(["dog", "fox", "lazy", "quick", "brown"]) for _ in range(6))
        body = {"messages": [{"role": "user", "content": words}], "max_tokens": self._max_tokens}
        return json.dumps(body | self._random.choice(kinds)).encode()

    async def _hang_up(self) -> None:
        """Leave at a random moment: before an answer, or in the middle of one."""
        await self.close()
        reader, writer = await self._connected()
        writer.write(_head("/v1/chat/completions", body := self._question()) + body)
        with suppress(TimeoutError):
            await asyncio.wait_for(reader.read(self._random.choice([1, 300, 2000])), self._random.random() * 0.05)
        await self.close()

    async def _ask(self, path: str, body: bytes) -> int:
        for _ in range(3):
            try:
                reader, writer = await self._connected()
                writer.write(_head(path, body) + body)
                return await self._reply(reader)
            except (asyncio.IncompleteReadError, ConnectionError):
                await self.close()  # an idle connection that the server has given up
        return 0

    async def _reply(self, reader: asyncio.StreamReader) -> int:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b"transfer-encoding: chunked" in head:
            while size := int(await reader.readline(), 16):
                await reader.readexactly(size + 2)
            await reader.readexactly(2)
        else:
            await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
        if b"connection: close" in head:
            await self.close()
        return int(head.split(b" ", 2)[1])

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(str(self._path))
        return self._streams

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


def _head(path: str, body: bytes) -> bytes:
    lines = ["Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode()


async def load(path: Path, watched: Watched, arguments: argparse.Namespace, count: int) -> Totals:
    """Make `count` requests."""
    totals = Totals()
    left = iter(range(count))
    every = max(1, count // 400)

    async def work(seed: int) -> None:
        client = Client(path, seed, arguments.max_tokens)
        for _ in left:
            await client.one(totals, watched, arguments.disconnect, arguments.hostile)
            totals.done += 1
            if totals.done % every == 0:
                totals.samples.append(watched.sample(totals.done))
            if totals.done % 10_000 == 0:
                held = sum(totals.samples[-1].private.values()) / 2**20
                print(f"{totals.done:,} requests, {held:.1f} MiB", file=sys.stderr, flush=True)
        await client.close()

    await asyncio.gather(*(work(seed) for seed in range(arguments.clients)))
    return totals


async def engine_usage(path: Path) -> dict[str, int]:
    """Return what the engine holds, asked by /health."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    answer = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
    writer.close()
    assert "engine" in answer, f"the server is not well: {answer}"
    usage: dict[str, int] = answer["engine"]
    return usage


def judged(totals: Totals, usage: dict[str, int], seconds: float) -> dict[str, Any]:
    """Return the figures, and whether the promises hold."""
    samples = totals.samples
    done = np.array([sample.done for sample in samples], dtype=float)
    names = sorted({name for sample in samples for name in sample.private})
    private = {name: np.array([sample.private.get(name, 0) for sample in samples], dtype=float) for name in names}
    growth = {name: float(np.polyfit(done, sizes, 1)[0]) for name, sizes in private.items()}
    tenth = max(1, len(totals.latencies) // 10)
    first, last = (np.percentile(part, 99, axis=0) for part in (totals.latencies[:tenth], totals.latencies[-tenth:]))
    part = max(1, len(samples) // 10)
    costs = [
        1e3 * (samples[b].processor_s - samples[a].processor_s) / (done[b] - done[a])
        for a, b in ((0, part), (-1 - part, -1))
    ]
    bad = {name: n for name, n in totals.outcomes.items() if name not in ("answered", "hung up", "hostile refused")}
    free = usage["free_blocks"] == usage["total_blocks"] and not usage["running"] and not usage["waiting"]
    descriptors = [sample.descriptors for sample in samples]
    return {
        "requests": totals.done,
        "seconds": round(seconds, 1),
        "outcomes": dict(totals.outcomes),
        "growth_bytes_a_request": {name: round(value, 1) for name, value in growth.items()},
        "private_mib": {name: [round(sizes[k] / 2**20, 1) for k in (0, -1)] for name, sizes in private.items()},
        "descriptors": [descriptors[0], descriptors[-1], max(descriptors)],
        "threads": [samples[0].threads, samples[-1].threads],
        "p99_ms_first_and_last_tenth": [round(p99[0] * 1e3, 1) for p99 in (first, last)],
        "p99_processor_ms_first_and_last_tenth": [round(p99[1] * 1e3, 1) for p99 in (first, last)],
        "processor_ms_a_request_first_and_last_tenth": [round(cost, 3) for cost in costs],
        "engine_after": usage,
        "holds": {
            "nothing failed": not bad,
            "growth": sum(growth.values()) <= MAX_GROWTH_BYTES,
            "nothing held": free,
            "p99": bool(last[1] <= MAX_P99_RATIO * first[1]),
        },
    }


@contextmanager
def server(path: Path, model: str | None) -> Iterator[psutil.Process]:
    """Run a server process; `model` None takes the engine that echoes."""
    if model is None:
        command = [sys.executable, "-m", "benchmarks.soak", "--serve", str(path)]
    else:
        command = [sys.executable, "-m", "qlocal.cli", "serve", "--socket", str(path), model]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def serve_echo(path: Path) -> None:
    """Be the server whose engine echoes."""
    from qlocal.config import ServeOptions
    from qlocal.devices import keep_little_freed_memory
    from qlocal.server.access import AccessRules
    from qlocal.server.bind import bind_unix
    from qlocal.server.engine_client import EngineClient
    from qlocal.server.http_server import serve
    from qlocal.server.service import Service
    from qlocal.server.status import StatusBoard
    from tests.server.conftest import RANK, open_fake_text, resolve_fake

    keep_little_freed_memory()
    with bind_unix(path) as listener:
        board = StatusBoard()
        service = Service(EngineClient(board, command=RANK), board, open_fake_text, resolve_fake, lambda load: None)
        serve(service, AccessRules(), listener, ServeOptions(model="echo"))


async def wait_until_ready(path: Path, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        with suppress(OSError, AssertionError, ValueError):
            await engine_usage(path)
            return
        if time.monotonic() > deadline:
            raise SystemExit("the server did not become ready")
        await asyncio.sleep(0.2)


async def settled(path: Path) -> dict[str, int]:
    """Give cancellations a second, then say what is still held."""
    await asyncio.sleep(1.0)
    return await engine_usage(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--disconnect", type=float, default=0.20)
    parser.add_argument("--hostile", type=float, default=0.05)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--model", help="a checkpoint; without it the engine echoes its prompt")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve_echo(arguments.serve)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o700)
        path = Path(folder) / "s.sock"
        with server(path, arguments.model) as process:
            asyncio.run(wait_until_ready(path))
            watched = Watched(process)
            warm_up = max(LEAST_WARM_UP, int(WARM_UP * arguments.requests))
            asyncio.run(load(path, watched, arguments, warm_up))
            begun = time.monotonic()
            totals = asyncio.run(load(path, watched, arguments, arguments.requests))
            seconds = time.monotonic() - begun
            report = judged(totals, asyncio.run(settled(path)), seconds)
    print(json.dumps(report, indent=1))
    return 0 if all(report["holds"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
