"""Writers of a history, killed: `python -m tests.chat.killing FILE CYCLES SEED` prints what was found as JSON.

A writer is forked from this process, so that a cycle takes milliseconds. It says a number for every change that the
history has acknowledged; after the kill all of those must be there.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from contextlib import closing
from pathlib import Path

from qlocal.chat.store.database import open_database
from qlocal.chat.store.history import History
from qlocal.chat.store.records import MessageState, Role

CHECK_EVERY = 50
MOST_MS = 25


def write(path: Path, acknowledged: int) -> None:
    """Add messages and answers for ever, as a chat does, and say after each that it is there."""
    history = History(open_database(path)[0])
    conversation_id = history.new_conversation(f"of {os.getpid()}", "m", None)
    parent_id: int | None = None
    while True:
        parent_id = history.add_message(conversation_id, parent_id, Role.USER, f"问题 {os.getpid()}")
        os.write(acknowledged, b".")
        answer_id = history.begin_answer(conversation_id, parent_id, "m")
        history.save_draft(conversation_id, "not sent")
        history.save_partial(answer_id, "half an answer " * 20)
        history.finish_answer(answer_id, "a whole answer " * 20, MessageState.COMPLETE, {})
        os.write(acknowledged, b".")
        parent_id = answer_id


def finished(path: Path, pid: int) -> int:
    """Return how many messages of a writer are there and final."""
    with closing(open_database(path)[0]) as database:
        query = (
            "SELECT COUNT(*) FROM message m JOIN conversation c ON c.id = m.conversation_id"
            " WHERE c.title = ? AND m.state = 'complete'"
        )
        return int(database.execute(query, (f"of {pid}",)).fetchone()[0])


def is_whole(path: Path) -> bool:
    """Whether SQLite finds nothing wrong, and the indexes of the search agree with the messages."""
    with closing(open_database(path)[0]) as database:
        database.execute("INSERT INTO message_text (message_text) VALUES ('integrity-check')")
        return bool(database.execute("PRAGMA integrity_check").fetchone()[0] == "ok")


def main(path: Path, cycles: int, seed: int) -> None:
    open_database(path)[0].close()
    chance = random.Random(seed)
    acknowledged = lost = broken = 0
    for cycle in range(cycles):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            write(path, writer)
        os.close(writer)
        select.select([reader], [], [], 5.0)  # it writes by now
        time.sleep(chance.random() * MOST_MS / 1e3)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        said = len(os.read(reader, 1 << 16))
        os.close(reader)
        acknowledged += said
        lost += max(0, said - finished(path, pid))
        if cycle % CHECK_EVERY == CHECK_EVERY - 1 or cycle == cycles - 1:
            broken += not is_whole(path)
    print(json.dumps({"cycles": cycles, "acknowledged": acknowledged, "lost": lost, "broken": broken}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
