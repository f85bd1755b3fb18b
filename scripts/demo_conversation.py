"""The demo's own client: a model in a server of its own, asked in OpenAI's way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from qlocal import launch
from qlocal.commands.waiting import wait_until_ready

QUESTIONS = ("What is the capital of France?", "What can a visitor see there? Name two places.")
MAX_TOKENS = 96


@contextmanager
def served(model: Path) -> Iterator[httpx.Client]:
    """Serve a model and give a client to it; the server ends with the block."""
    address = launch.ensure_server(str(model))
    try:
        wait_until_ready(address)
        with launch.connect(address, read_timeout_s=None) as client:
            yield client
    finally:
        launch.stop(address)


def ask(client: httpx.Client, messages: list[dict[str, str]], max_tokens: int = MAX_TOKENS) -> dict[str, Any]:
    """Return the whole response to a conversation, with the most likely token taken at each step."""
    body = {"messages": messages, "temperature": 0, "max_tokens": max_tokens}
    response = client.post("/v1/chat/completions", json=body)
    if response.status_code != 200:
        raise launch.error_of(response)
    answer: dict[str, Any] = response.json()
    return answer


def converse(model: Path, console: Console) -> None:
    """Print a conversation of two turns, the second of which needs the first."""
    messages: list[dict[str, str]] = []
    with served(model) as client:
        for question in QUESTIONS:
            messages.append({"role": "user", "content": question})
            answer = ask(client, messages)
            text = answer["choices"][0]["message"]["content"]
            messages.append({"role": "assistant", "content": text})
            speed = answer["usage"]["qlocal"]
            console.print(f"\n[bold]You:[/] {question}")
            console.print("[bold]Model:[/] ", end="")
            console.print(text, markup=False, highlight=False)
            console.print(
                f"[dim]{answer['usage']['prompt_tokens']} prompt tokens, {speed['cached_tokens']} of them known from "
                f"before; {speed['tokens_per_s']:.1f} tokens/s[/]"
            )
