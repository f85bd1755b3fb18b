"""An engine that talks: `word0 word1 …` to a conversation that ends with "tell me", else the end of it.

`python -m tests.chat.talking_rank serve …` is `qlocal serve` with it in the place of the real one: all processes,
sockets and the supervision are real, the weights are not.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from functools import partial

from qlocal import cli
from qlocal.protocol import Started, Submit, Tokens
from qlocal.server import serve
from qlocal.server.engine_client import EngineClient
from tests.server.conftest import open_fake_text
from tests.server.fake_rank import FakeRank

WORD_S = 0.01
LONG_ANSWER_WORDS = 4000
TELL = "tell me"


class TalkingRank(FakeRank):
    """A word at a time, a token a byte."""

    def submit(self, submit: Submit) -> None:
        said = bytes(i % 256 for i in submit.input_ids)
        text = f"Heard: {said[-4:].decode(errors='replace')}. "
        if said.endswith(TELL.encode()):
            text = "".join(f"word{n} " for n in range(LONG_ANSWER_WORDS))
        self.send(Started(submit.request_id, len(submit.input_ids), 3, 0.01, []))
        self.running[submit.request_id] = (submit, [*text.encode()][: submit.max_tokens])

    def step(self, submit: Submit, reply: list[int]) -> None:
        time.sleep(WORD_S)
        length = reply.index(ord(" ")) + 1 if ord(" ") in reply else len(reply)
        ids = [*reply[:length], *submit.stop_ids[: length == len(reply)]]
        del reply[:length]
        asked = submit.sampling.top_logprobs is not None
        self.send(Tokens(submit.request_id, ids, [self.logprobs(i, submit) for i in ids] if asked else []))
        if not reply:
            self.finish(submit.request_id, "stop", len(ids))


def main() -> int:
    """Be `qlocal serve`, or the rank that it starts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int)
    arguments, others = parser.parse_known_args()
    if arguments.fd is not None:
        TalkingRank(socket.socket(fileno=arguments.fd)).run()
        return 0
    command = (sys.executable, "-m", "tests.chat.talking_rank")
    vars(serve).update(
        EngineClient=partial(EngineClient, command=command),
        text_opener=lambda guard: open_fake_text,
        check_plan=lambda load: None,
    )
    return cli.main(others)


if __name__ == "__main__":
    sys.exit(main())
