"""Make the screenshots in docs/ from the real chat with a scripted server: `python scripts/screenshot.py [FOLDER]`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from qlocal.chat.app import ChatApp  # noqa: E402 - the checkout must be found first
from qlocal.chat.events import AnswerEvent, Done, TextDelta, Usage  # noqa: E402
from qlocal.chat.link_state import Choice, LinkState, Phase  # noqa: E402
from qlocal.chat.store.threaded import Store  # noqa: E402
from qlocal.chat.widgets.prompt import Prompt  # noqa: E402
from qlocal.config import ChatOptions  # noqa: E402
from tests.chat.scripted import ScriptedLink  # noqa: E402

SIZE = (104, 42)
MODEL = "qwen2-72b-instruct"
QUESTION = "How much memory does a token of context cost in Qwen2-72B,\nand what is left for it on two 24 GB cards?"
ANSWER = """Each token keeps one **key** and one **value** vector per layer and KV head:

```python
layers, kv_heads, head_dim, bytes_each = 80, 8, 128, 2

def cache_bytes(tokens: int) -> int:
    return 2 * layers * kv_heads * head_dim * bytes_each * tokens  # K and V

print(cache_bytes(1) // 1024, "KiB")  # 320 KiB
```

So the context takes, with the cache in `f16` or in 8 bits:

| context | f16 | q8 |
|:--|--:|--:|
| 8,192 | 2.5 GiB | 1.3 GiB |
| 16,384 | 5.0 GiB | 2.6 GiB |
| 32,768 | 10.0 GiB | 5.3 GiB |

- The weights in 4 bits need about **39 GiB** of the 48.
- What remains is room for some 22,000 tokens in `f16`:
  - twice as many in 8 bits,
  - 简单地说：*上下文越长，缓存越大*。
"""
CHOICES = [
    Choice("qwen2-72b-instruct/awq", "39.0 GiB, fits on cuda:0 and cuda:1"),
    Choice("qwen2.5-7b-instruct/gguf", "4.4 GiB"),
    Choice("smollm2-135m-instruct/gptq", "0.1 GiB"),
    Choice("llama-3-70b-instruct", "qlocal pull llama-3-70b-instruct", is_here=False),
]


def script() -> ScriptedLink:
    """The server of the pictures: one model that is ready, one answer."""
    deltas: list[AnswerEvent] = [TextDelta(ANSWER[i : i + 7]) for i in range(0, len(ANSWER), 7)]
    usage = Usage(61, 388, cached_tokens=22, tokens_per_s=17.4, max_context=16384)
    states = [LinkState(Phase.READY, MODEL, max_context=16384)]
    return ScriptedLink([[*deltas, usage, Done("stop")]], first_states=states, models=CHOICES)


async def picture(folder: Path) -> None:
    """Hold the conversation and write `chat.svg`, `chat-light.svg` and `chat-models.svg`."""
    with tempfile.TemporaryDirectory() as home:
        store = Store(Path(home) / "history.sqlite3")
        app = ChatApp(ChatOptions(model=MODEL), store, lambda _options: script())
        async with app.run_test(size=SIZE) as pilot:
            await pilot.pause(0.5)
            app.chat.query_one(Prompt).text = QUESTION
            await pilot.press("enter")
            await pilot.pause(1.5)
            app.save_screenshot("chat.svg", path=str(folder))
            await pilot.press("f2")
            await pilot.pause(0.5)
            app.save_screenshot("chat-models.svg", path=str(folder))
            await pilot.press("escape")
            app.theme = "qlocal-light"
            await pilot.pause(0.5)
            app.save_screenshot("chat-light.svg", path=str(folder))
        await store.close()


if __name__ == "__main__":
    asyncio.run(picture(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"))
