"""Make the screenshots in docs/ from the real chat with a real model: `python scripts/screenshot.py MODEL`.

Every figure in the pictures is what this machine reached while they were taken.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from textual.pilot import Pilot  # noqa: E402 - the checkout must be found first

from qlocal.chat.app import ChatApp  # noqa: E402
from qlocal.chat.store.threaded import Store  # noqa: E402
from qlocal.chat.widgets.prompt import Prompt  # noqa: E402
from qlocal.config import ChatOptions  # noqa: E402

SIZE = (104, 38)
WAIT_S = 600.0
QUESTIONS = (
    "Write a Python one-liner that reverses a string, and explain it in one sentence.",
    "And how would I do that in Rust? Only the code.",
)


async def ask(app: ChatApp, pilot: Pilot[int], question: str) -> None:
    """Type a question, send it, and wait for the whole answer."""
    app.chat.query_one(Prompt).text = question
    await pilot.press("enter")
    await pilot.pause(0.5)
    async with asyncio.timeout(WAIT_S):
        while any(worker.group == "turn" for worker in app.workers):
            await pilot.pause(0.2)
    await pilot.pause(0.5)


async def pictures(model: str, folder: Path) -> None:
    """Hold the conversation and write `chat.svg`, `chat-light.svg` and `chat-models.svg`."""
    with tempfile.TemporaryDirectory() as home:
        store = Store(Path(home) / "history.sqlite3")
        app = ChatApp(ChatOptions(model=model), store)
        async with app.run_test(size=SIZE) as pilot:
            for question in QUESTIONS:
                await ask(app, pilot, question)
            app.save_screenshot("chat.svg", path=str(folder))
            await pilot.press("f2")
            await pilot.pause(1.0)
            app.save_screenshot("chat-models.svg", path=str(folder))
            await pilot.press("escape")
            app.theme = "qlocal-light"
            await pilot.pause(0.5)
            app.save_screenshot("chat-light.svg", path=str(folder))
        await store.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/screenshot.py MODEL")
    asyncio.run(pictures(sys.argv[1], ROOT / "docs"))
