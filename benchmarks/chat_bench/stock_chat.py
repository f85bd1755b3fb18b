"""A chat as Textual's own parts give it: a `Markdown` widget a message, streamed by `MarkdownStream`.

`python -m benchmarks.chat_bench.stock_chat URL NUM_MESSAGES`: what `chat_latency.py` compares with.
"""

from __future__ import annotations

import json
import sys

import httpx
from textual.app import App, ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Markdown, TextArea

MESSAGE = "Some **words** about `x` in a paragraph.\n\n- one\n- two\n\n```py\nx = 1\n```\n"


class Prompt(TextArea):
    BINDINGS = [("enter", "app.send", "Send")]  # noqa: RUF012 - as in any small app

    async def _on_key(self, event) -> None:  # type: ignore[no-untyped-def]
        if event.key == "enter":
            event.prevent_default()
            event.stop()
            self.app.run_worker(self.app.answer())
        else:
            await super()._on_key(event)


class StockChat(App[None]):
    """The messages, and a prompt below them."""

    CSS = "VerticalScroll { height: 1fr; } Prompt { height: 4; }"

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="log"):
            for _ in range(int(sys.argv[2])):
                yield Markdown(MESSAGE)
        yield Prompt(id="prompt")

    def on_mount(self) -> None:
        self.query_one(Prompt).focus()
        self.query_one("#log").anchor()
        self.call_after_refresh(lambda: self.query_one(Prompt).insert("opened"))

    async def answer(self) -> None:
        log = self.query_one("#log")
        message = Markdown()
        await log.mount(message)
        stream = Markdown.get_stream(message)
        request = {"messages": [], "stream": True}
        async with (
            httpx.AsyncClient(timeout=None) as http,
            http.stream("POST", sys.argv[1] + "/v1/chat/completions", json=request) as response,
        ):
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    await stream.write(json.loads(line[6:])["choices"][0]["delta"]["content"])


if __name__ == "__main__":
    StockChat().run()
