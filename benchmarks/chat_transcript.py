"""Does the transcript stay quick? Opens a log of 10,000 messages, then streams prose, list, code and table into it.

`python benchmarks/chat_transcript.py` prints a table and, with `--json`, one JSON object. Headless, CPU time of this
process beside wall time, since the machine may be busy with something else.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable

import psutil
from textual.app import App, ComposeResult

from qlocal.chat.entry import Entry
from qlocal.chat.widgets.transcript import Transcript

NUM_MESSAGES = 10_000
SIZE = (120, 40)
MESSAGE = "Some **words** about `x` in a paragraph that is long enough to wrap.\n\n- one\n- two\n\n```py\nx = 1\n```\n"
KINDS = {
    "prose": "word " * 12,
    "list": "- an item with **bold** text\n",
    "code": "value = function(argument, 42)  # comment\n",
    "table": "| cell | 12 | cell |\n",
}
OPENINGS = {"code": "```python\n", "table": "| a | b | c |\n|--|--|--|\n"}


class Bench(App[None]):
    def compose(self) -> ComposeResult:
        yield Transcript(id="log")


def timed(job: Callable[[], object]) -> tuple[float, float]:
    """Return wall and CPU milliseconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    job()
    return (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3


def draw(log: Transcript) -> None:
    for y in range(log.size.height):
        log.render_line(y)


async def main() -> dict[str, dict[str, float]]:
    results: dict[str, dict[str, float]] = {}
    app = Bench()
    async with app.run_test(size=SIZE) as pilot:
        log = app.query_one(Transcript)
        before = psutil.Process().memory_info().rss
        entries = [Entry(i, i % 2 == 0, MESSAGE, "You" if i % 2 == 0 else "model") for i in range(NUM_MESSAGES)]
        wall, cpu = timed(lambda: (log.show(entries), draw(log)))
        results["open 10,000"] = {"wall_ms": wall, "cpu_ms": cpu}
        pages = [timed(lambda: (log.scroll_page_up(), draw(log))) for _ in range(50)]
        results["page up"] = summary(pages)
        log.go_to_end()
        results["memory"] = {"grown_mib": (psutil.Process().memory_info().rss - before) / 2**20}
        for kind, piece in KINDS.items():
            log.add(Entry(0, False, OPENINGS.get(kind, ""), "model", is_streaming=True))
            results[f"flush {kind}"] = summary(
                [timed(lambda p=piece: (log.append_text(p), log.flush(), draw(log))) for _ in range(200)]
            )
        results["resize"] = {"wall_ms": timed(lambda: log._estimate())[0]}
        await pilot.pause()
    return results


def summary(times: list[tuple[float, float]]) -> dict[str, float]:
    wall = sorted(t[0] for t in times)
    cpu = sorted(t[1] for t in times)
    return {
        "wall_p50_ms": statistics.median(wall),
        "cpu_p50_ms": statistics.median(cpu),
        "cpu_p95_ms": cpu[int(0.95 * len(cpu))],
        "cpu_max_ms": cpu[-1],
    }


if __name__ == "__main__":
    results = asyncio.run(main())
    if "--json" in sys.argv:
        print(json.dumps(results))
    else:
        for name, values in results.items():
            print(f"{name:14}", "  ".join(f"{key} {value:8.2f}" for key, value in values.items()))
