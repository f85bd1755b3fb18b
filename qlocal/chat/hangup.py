"""The end of a chat whose terminal is gone: a closed window, a lost connection, a killed tmux.

Textual does not survive that by itself: the thread that writes to the terminal ends with an error, whoever writes next
waits for it for ever, and the one that reads turns as fast as it can. So a thread of its own waits for the hang-up.
"""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections.abc import Callable

HANGUP = 129
"""Exit code as a shell would give it: 128 and the number of SIGHUP."""
GRACE_S = 2.0
"""For an orderly end, which needs an event loop that is not stuck."""


def end_with_terminal(
    descriptor: int, loop: asyncio.AbstractEventLoop, leave: Callable[[], object], last_words: Callable[[], object]
) -> None:
    """Watch a terminal from a thread. When nobody holds its other end any more, `leave` in the loop; if that does not
    end the process within GRACE_S, do `last_words` and end it."""

    def watch() -> None:
        poll = select.poll()
        poll.register(descriptor, 0)  # a hang-up is always told
        poll.poll()
        try:
            loop.call_soon_threadsafe(leave)
        except RuntimeError:  # the loop has ended: so will the process
            return
        time.sleep(GRACE_S)
        last_words()
        os._exit(HANGUP)

    threading.Thread(target=watch, name="hangup", daemon=True).start()
