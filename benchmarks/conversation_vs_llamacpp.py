"""How does a conversation feel: time to the first token, and tokens a second after it, beside llama.cpp's server?

    conversation_vs_llamacpp.py MODEL.gguf [--threads N] [--context TOKENS] [--rounds 3] [--json FILE]

Both servers are asked the same questions in OpenAI's way, greedily, and answer in turns; the history that a question
comes with is our first round's for both, so that they read the same tokens. QLOCAL_LLAMA_BIN names the folder of
`llama-server`; without it only ours is measured. Medians over the rounds, with (least to greatest); each round is a new
conversation, of which nothing is remembered.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

QUESTIONS = (
    "Write a Python function that merges two sorted lists into one.",
    "Now let it take any number of lists, and say how long it takes.",
    "Show a test for the empty list and for equal values.",
    "Which of the two versions would you keep in a library, and why?",
)
MAX_TOKENS = 128
START_TIMEOUT_S = 300.0


@dataclass
class Turn:
    """One question's measurements over the rounds. Seconds, and tokens a second."""

    question: str
    first_token_s: list[float] = field(default_factory=list)
    tokens_per_s: list[float] = field(default_factory=list)


def ask(client: httpx.Client, messages: list[dict[str, str]]) -> tuple[str, float, float]:
    """Return the answer, the seconds until its first text, and the tokens a second behind that."""
    body: dict[str, Any] = {"messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS, "stream": True}
    body["stream_options"] = {"include_usage": True}
    pieces: list[str] = []
    start, first, last, num_tokens = time.perf_counter(), 0.0, 0.0, 0
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        for chunk in _chunks(response):
            text = chunk["choices"][0]["delta"].get("content") if chunk["choices"] else None
            if text:
                last = time.perf_counter()
                first = first or last
                pieces.append(text)
            num_tokens = (chunk.get("usage") or {}).get("completion_tokens", num_tokens)
    return "".join(pieces), first - start, (num_tokens - 1) / (last - first) if last > first else 0.0


def _chunks(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


@contextmanager
def served(command: list[str], base_url: str, token: str | None, health: str) -> Iterator[httpx.Client]:
    """Run a server and give a client to it once it answers `health` with 200; it ends with the block."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limits = httpx.Limits(max_keepalive_connections=0)  # a server may close a connection it kept just as it is reused
    try:
        with httpx.Client(base_url=base_url, headers=headers, timeout=None, limits=limits) as client:
            _await(client, server, health)
            yield client
    finally:
        server.terminate()
        server.wait()


def _await(client: httpx.Client, server: subprocess.Popen[bytes], health: str) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        if server.poll() is not None:
            raise SystemExit(f"{server.args} ended with {server.returncode}")
        try:
            if client.get(health).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
        time.sleep(0.1)
    raise SystemExit(f"{server.args} did not answer within {START_TIMEOUT_S:.0f} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def ours(options: argparse.Namespace) -> Iterator[httpx.Client]:
    port, token = _free_port(), "conversation-benchmark-of-this-machine"
    with tempfile.TemporaryDirectory() as folder:
        token_file = Path(folder) / "token"
        token_file.write_text(token)
        token_file.chmod(0o600)
        command = [sys.executable, "-m", "qlocal.cli", "serve", str(options.model), "--port", str(port)]
        command += ["--token-file", str(token_file), "--context", str(options.context)]
        command += ["--threads", str(options.threads)] if options.threads else []
        with served(command, f"http://127.0.0.1:{port}", token, "/v1/models") as client:
            _await_model(client)
            yield client


def _await_model(client: httpx.Client) -> None:
    """Wait until the engine has loaded; the server answers before."""
    while (status := client.get("/qlocal/status").json())["state"] != "ready":
        if status["state"] == "failed":
            raise SystemExit(f"loading failed: {status['error']}")
        time.sleep(0.1)


@contextmanager
def llama(options: argparse.Namespace, folder: Path) -> Iterator[httpx.Client]:
    port = _free_port()
    command = [str(folder / "llama-server"), "-m", str(options.model), "--port", str(port), "-c", str(options.context)]
    command += ["-t", str(options.threads)] if options.threads else []
    with served(command, f"http://127.0.0.1:{port}", None, "/health") as client:
        yield client


def converse(client: httpx.Client, turns: list[Turn], answers: list[str]) -> None:
    """Ask all questions; answers that are known already are the history, others are appended."""
    messages: list[dict[str, str]] = []
    for index, turn in enumerate(turns):
        messages.append({"role": "user", "content": turn.question})
        text, first_s, rate = ask(client, messages)
        turn.first_token_s.append(first_s)
        turn.tokens_per_s.append(rate)
        if index == len(answers):
            answers.append(text)
        messages.append({"role": "assistant", "content": answers[index]})


def table(results: dict[str, list[Turn]]) -> str:
    """Return Markdown: a line a question, two columns an engine."""
    head = " | ".join(f"{name}: first token, s | tokens/s" for name in results)
    lines = [f"| question | {head} |", "|---|" + "---:|---:|" * len(results)]
    for index, question in enumerate(QUESTIONS):
        cells = []
        for turns in results.values():
            cells += [_spread(turns[index].first_token_s, 2), _spread(turns[index].tokens_per_s, 1)]
        lines.append(f"| {question} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    middle, low, high = (f"{v:.{digits}f}" for v in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = os.environ.get("QLOCAL_LLAMA_BIN")
    results: dict[str, list[Turn]] = {}
    answers: list[str] = []
    for _ in range(options.rounds):
        with ours(options) as client:
            converse(client, results.setdefault("qlocal", [Turn(q) for q in QUESTIONS]), answers)
        if folder:
            with llama(options, Path(folder)) as client:
                converse(client, results.setdefault("llama.cpp", [Turn(q) for q in QUESTIONS]), answers)
    print(table(results))
    if options.json is not None:
        options.json.write_text(json.dumps({k: [asdict(t) for t in v] for k, v in results.items()}, indent=1))


if __name__ == "__main__":
    main()
