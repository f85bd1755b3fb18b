"""Is the chat quick where people type? The real program at a pty, beside a stock Textual chat in the same run.

`python benchmarks/chat_latency.py` prints a table, `--json FILE` writes it too. While a server streams 300 tokens a
second of prose, list, code and table into a conversation of 10,000 messages, keys are typed, and timed until the
terminal is told to draw them; then the window changes its size. In another history 100,000 messages are searched. "own"
leaves out the time in which the program waited for a processor that others had: on an idle machine both are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.chat_bench.server import streaming_server  # noqa: E402 - the checkout must be found first
from benchmarks.chat_bench.terminal import Terminal, Took  # noqa: E402
from qlocal.chat.store.database import open_database  # noqa: E402
from qlocal.chat.store.history import History  # noqa: E402
from qlocal.chat.store.records import Conversation, Message, MessageState, Role  # noqa: E402
from qlocal.chat.words import SEARCH_FOR, STOPPED  # noqa: E402

NUM_MESSAGES = 10_000
TOKENS_PER_S = 300.0
NUM_KEYS = 200
PAUSE_S = (0.05, 0.15)
IDLE_S = 20.0
STARTS = 7
SIZES = [(80, 24), (160, 50), (60, 15), (120, 40)] * 5
NUM_SEARCHED, NUM_CONVERSATIONS = 100_000, 500
QUERIES = 40
OPENINGS, STOPS = 7, 8
BACKSPACE, ESCAPE, NEW, CHOOSE = b"\x7f", b"\x1b", b"\x0e", b"\x0f"
STOCK_KEYS = 20
FOCUS_OUT_AND_IN = b"\x1b[O\x1b[I"
ANSWER = (
    "Some **words** about `x` in a paragraph that is long enough to wrap, 还有一些中文字。\n\n- one\n- two\n\n"
    "```py\nx = 1\n```\n"
)
START = (
    "import sys; from qlocal.chat.app import run_chat; from qlocal.config import ChatOptions;"
    "sys.exit(run_chat(ChatOptions(endpoint=sys.argv[1])))"
)
Row = dict[str, float | str]


def make_history(home: Path) -> None:
    """Write a conversation of 10,000 messages, as two years of talking leave one."""
    connection, _ = open_database(home / "history.sqlite3")
    connection.execute("PRAGMA synchronous = OFF")
    history = History(connection)
    conversation = history.new_conversation("a long one", "fake-model", None)
    parent: int | None = None
    for i in range(NUM_MESSAGES):
        is_user = i % 2 == 0
        text = f"Question {i} about something?" if is_user else ANSWER + f"number {i}."
        parent = history.add_message(conversation, parent, Role.USER if is_user else Role.ASSISTANT, text)
    connection.close()


def make_searched(home: Path) -> None:
    """Write a history of 100,000 messages, each with a word of its own."""
    connection, _ = open_database(home / "history.sqlite3")
    connection.execute("PRAGMA synchronous = OFF")
    history = History(connection)
    for _ in range(NUM_CONVERSATIONS):
        messages = []
        for number in range(NUM_SEARCHED // NUM_CONVERSATIONS):
            name = f"{random.randrange(10**9):09}"
            text = f"{ANSWER}word{name} found{name}"
            messages.append(Message(number + 1, number or None, Role.USER, text, MessageState.COMPLETE, None, 0.0))
        history.add_conversation(Conversation(1, "one of many", None, None, 0.0, 0.0, len(messages), 0), messages)
    connection.close()


def chat(url: str, home: Path) -> Terminal:
    """Start the chat."""
    environment = {**os.environ, "QLOCAL_HOME": str(home), "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
    return Terminal([sys.executable, "-c", START, url], environment)


def typed(terminal: Terminal, num_keys: int = NUM_KEYS) -> list[Took]:
    """Type letters, now and then taken back, while the rest goes on."""
    took: list[Took] = []
    for i in range(num_keys):
        terminal.watch(random.uniform(*PAUSE_S))
        took.append(terminal.key_to_screen())
        if i % 40 == 39:
            terminal.press(BACKSPACE * 40)
    return took


def percentiles(name: str, took: list[Took], bar: str) -> Row:
    walls, owns = sorted(one.wall_ms for one in took), sorted(one.own_ms for one in took)
    row: Row = {"what": name, "bar": bar}
    for share in (50, 95, 99):
        at = min(len(walls) - 1, len(walls) * share // 100)
        row |= {f"p{share}_ms": walls[at], f"own_p{share}_ms": owns[at]}
    return row


def best(name: str, took: list[Took], bar: str) -> Row:
    walls, owns = sorted(one.wall_ms for one in took), sorted(one.own_ms for one in took)
    middle = len(walls) // 2
    return {"what": name, "bar": bar, "ms": walls[middle], "own_ms": owns[middle], "best_ms": walls[0]}


def measure_start(url: str, home: Path) -> Row:
    took: list[Took] = []
    for _ in range(STARTS):
        terminal = chat(url, home)
        took.append(terminal.first_paint("Ask something"))
        terminal.close()
    return best("first paint", took, "400 ms")


def measure_chat(url: str, home: Path) -> list[Row]:
    terminal = chat(url, home)
    terminal.until("fake-model")
    terminal.settle()
    rows: list[Row] = []
    opened: list[Took] = []
    for _ in range(OPENINGS):
        terminal.press(NEW)
        terminal.settle()
        terminal.reaction(CHOOSE, "a long one")
        terminal.settle()
        opened.append(terminal.reaction(b"\r", f"number {NUM_MESSAGES - 1}."))
        terminal.settle()
    rows.append(best("open 10,000 messages", opened, "250 ms"))
    focus = [terminal.key_to_screen(FOCUS_OUT_AND_IN) for _ in range(9)]
    rows.append(best("focus out, in and a key", focus, "150 ms"))
    rows.append(percentiles("key to screen, nothing else", typed(terminal, 60), "33 / 50 ms"))
    terminal.press(BACKSPACE * 200)
    terminal.settle()
    before_s = terminal.cpu_s()
    time.sleep(IDLE_S)
    terminal.read(0)
    rows.append({"what": "idle CPU", "bar": "0.5 %", "percent": (terminal.cpu_s() - before_s) / IDLE_S * 100})
    rows += measure_streaming(terminal)
    rows.append(measure_stopping(terminal))
    rows.append({"what": "memory, 10,000 messages", "bar": "150 MB", "MB": terminal.memory_mib() * 2**20 / 1e6})
    paste = b"\x1b[200~" + b"some words of a file that is long\n" * 30_000 + b"\x1b[201~"
    rows.append(best("paste of 1 MB, and a key", [terminal.key_to_screen(paste)], "100 ms"))
    terminal.close()
    return rows


def measure_streaming(terminal: Terminal) -> list[Row]:
    rows = [best("Enter to the answer's first words", [terminal.reaction(b"go\r", "river")], "")]
    terminal.settle(0.0)
    before_s, began = terminal.cpu_s(), time.perf_counter()
    rows.append(percentiles("key to screen, 300 tokens/s", typed(terminal), "33 / 50 ms"))
    share = (terminal.cpu_s() - before_s) / (time.perf_counter() - began)
    rows.append({"what": "CPU while streaming", "bar": "", "percent": share * 100})
    resized: list[Took] = []
    for size in SIZES:
        resized.append(terminal.redrawn(size, "─" * (size[0] - 4)))
        terminal.watch(0.3)
    rows.append(percentiles("another size, 300 tokens/s", resized, ""))
    return rows


def measure_stopping(terminal: Terminal) -> Row:
    """Stop the answer that streams, then others soon after their first words."""
    took = [terminal.reaction(ESCAPE, STOPPED)]
    for _ in range(STOPS):
        terminal.settle()
        terminal.press(BACKSPACE * 200)
        terminal.settle()
        terminal.reaction(b"go\r", "river")
        terminal.watch(random.uniform(0.2, 1.0))
        took.append(terminal.reaction(ESCAPE, STOPPED))
    terminal.settle()
    return best("Esc to the answer's end, 300 tokens/s", took, "100 ms")


def measure_search(url: str, home: Path) -> Row:
    """Search as one types, from the last letter of a word to the line with the hit."""
    terminal = chat(url, home)
    terminal.until("fake-model")
    terminal.settle()
    terminal.reaction(b"\x06", SEARCH_FOR)
    terminal.settle()
    with closing(sqlite3.connect(home / "history.sqlite3")) as database:
        rows = database.execute("SELECT content FROM message ORDER BY RANDOM() LIMIT ?", (QUERIES,))
        names = [content.rpartition("found")[2] for (content,) in rows]
    took: list[Took] = []
    for name in names:
        terminal.press(BACKSPACE * 20)
        terminal.settle()  # letters in the same burst would be in front of them, and be deleted
        terminal.reaction(f"word{name[:-1]}".encode(), f"found{name}")
        terminal.settle()
        took.append(terminal.reaction(name[-1:].encode(), f"found{name}"))  # the list is drawn anew
    terminal.close()
    return percentiles(f"search in {NUM_SEARCHED:,} messages, a key to the hit", took, "50 ms")


def measure_stock(url: str, num_messages: int) -> list[Row]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
    command = [sys.executable, "-m", "benchmarks.chat_bench.stock_chat", url, str(num_messages)]
    terminal = Terminal(command, environment)
    name = f"stock, {num_messages} messages: "
    rows = [best(name + "start", [terminal.first_paint("opened")], "")]
    terminal.settle()
    focus = [terminal.key_to_screen(FOCUS_OUT_AND_IN) for _ in range(3)]
    rows.append(best(name + "focus out, in and a key", focus, ""))
    rows.append({"what": name + "memory", "bar": "", "MB": terminal.memory_mib() * 2**20 / 1e6})
    terminal.press(b"\r")
    terminal.until("river")
    terminal.settle(0.0)
    # So few because a key can take seconds here.
    rows.append(percentiles(name + f"{STOCK_KEYS} keys, 300 tokens/s", typed(terminal, STOCK_KEYS), ""))
    terminal.close()
    return rows


def show(rows: list[Row]) -> None:
    for row in rows:
        values = {key: value for key, value in row.items() if key not in ("what", "bar")}
        figures = "  ".join(f"{key} {value:.1f}" for key, value in values.items())
        print(f"{row['what']:48} {row['bar']!s:12} {figures}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Is the chat quick where people type?")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--stock", type=int, default=100, help="messages of the stock chat; 0 leaves it out")
    arguments = parser.parse_args()
    random.seed(1)
    with tempfile.TemporaryDirectory() as folder, streaming_server(TOKENS_PER_S) as url:
        home = Path(folder)
        make_history(home)
        rows = [measure_start(url, home), *measure_chat(url, home)]
        (home / "searched").mkdir()
        make_searched(home / "searched")
        rows.append(measure_search(url, home / "searched"))
        show(rows)
        if arguments.stock:
            rows += (stock := measure_stock(url, arguments.stock))
            show(stock)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"load": os.getloadavg(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
