"""A rank that answers with the prompt's own tokens: the server's tests run without an engine.

Words in the prompt make it misbehave: DIE, HANG, SLOW, ERROR, GARBAGE. The file FAKE_RANK_LOG lists what it received.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import time
from dataclasses import replace
from pathlib import Path

from qlocal import protocol
from qlocal.protocol import (
    Cancel,
    Failed,
    FindSession,
    Finished,
    Load,
    Message,
    Ping,
    Pong,
    Progress,
    Ready,
    SaveSession,
    Session,
    Shutdown,
    Started,
    Submit,
    TokenLogprobs,
    Tokens,
)

MAX_CONTEXT = 200
ROOMY_CONTEXT = 4000
SLOW_S = 0.03


class FakeRank:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.running: dict[str, tuple[Submit, list[int]]] = {}
        self.buffer = b""
        self.saved: dict[str, tuple[int, list[int]]] = {}
        log = os.environ.get("FAKE_RANK_LOG")
        self.log = Path(log) if log else None

    def run(self) -> None:
        while True:
            busy = any(b"HANG" not in bytes(i % 256 for i in s.input_ids) for s, _ in self.running.values())
            readable, _, _ = select.select([self.connection], [], [], 0 if busy else None)
            if readable and not self.receive():
                return
            for submit, reply in list(self.running.values()):
                self.step(submit, reply)

    def receive(self) -> bool:
        data = self.connection.recv(1 << 20)
        if not data:
            return False
        self.buffer += data
        while len(self.buffer) >= 4:
            length = protocol.frame_length(self.buffer[:4])
            if len(self.buffer) < 4 + length:
                break
            message = protocol.decode(self.buffer[4 : 4 + length])
            self.buffer = self.buffer[4 + length :]
            if not self.handle(message):
                return False
        return True

    def handle(self, message: Message) -> bool:
        if self.log:
            with self.log.open("a") as file:
                print(message, file=file)
        match message:
            case Load():
                self.load(message)
            case Submit():
                self.submit(message)
            case Cancel():
                if message.request_id in self.running:
                    self.finish(message.request_id, "cancelled", 0)
            case Ping():
                cached = None if message.input_ids is None else len(message.input_ids) // 2
                self.send(Pong(message.nonce, len(self.running), 0, 1, 1, cached))
            case SaveSession():
                self.save(message)
            case FindSession():
                self.find(message)
            case Shutdown():
                return False
        return True

    def save(self, message: SaveSession) -> None:
        """Half of it at a time; a name that says so is refused."""
        total, (done, _) = len(message.input_ids), self.saved.get(message.name, (0, []))
        if message.name == "refused":
            self.send(Session(message.nonce, error="'refused' takes 9 GiB", hint="Raise --sessions."))
            return
        self.saved[message.name] = min(total, done + total // 2 + 1), message.input_ids
        self.send(Session(message.nonce, self.saved[message.name][0], total))

    def find(self, message: FindSession) -> None:
        if message.name == "other":
            self.send(Session(message.nonce, error="other.session was made with weights 'a', expected 'b'"))
            return
        _, token_ids = self.saved.get(message.name, (0, []))
        error = None if token_ids else f"there is no session '{message.name}'"
        self.send(Session(message.nonce, token_ids=token_ids, error=error))

    def load(self, load: Load) -> None:
        self.send(Progress("weights", 1, 2, {"cpu": [3, 4]}))
        if "slow" in load.path:
            time.sleep(0.5)
        if "broken" in load.path:
            self.send(Failed("model.safetensors: tensor 'x' has NaN", hint="Fetch it again."))
            raise SystemExit(1)
        context = ROOMY_CONTEXT if "roomy" in load.path else MAX_CONTEXT
        self.send(Ready(load.max_context or context, load.slots, {"devices": []}, load.devices, 2, 0.1))

    def submit(self, submit: Submit) -> None:
        if b"DIE" in bytes(i % 256 for i in submit.input_ids):
            os._exit(9)
        if b"GARBAGE" in bytes(i % 256 for i in submit.input_ids):
            self.connection.sendall(b"\xff\xff\xff\xff")
        prompt = []
        if submit.scored_from is not None:
            prompt = [self.logprobs(i, submit) for i in submit.input_ids[submit.scored_from :]]
        if submit.keep_rows is not None:
            Path(submit.keep_rows).write_bytes(b"kept")
        if submit.against_rows is not None and Path(submit.against_rows).read_bytes() == b"kept":
            prompt = [replace(token, kl=0.25, kl_reverse=0.5) for token in prompt]
        self.send(Started(submit.request_id, len(submit.input_ids), 3, 0.01, prompt))
        if submit.max_tokens == 0:
            self.send(Finished(submit.request_id, "length", 0, 0.0))
            return
        self.running[submit.request_id] = (submit, [*submit.input_ids, *submit.stop_ids][: submit.max_tokens])

    def step(self, submit: Submit, reply: list[int]) -> None:
        text = bytes(i % 256 for i in submit.input_ids)
        if b"HANG" in text:
            return
        if b"ERROR" in text:
            self.finish(submit.request_id, "error", 0, "logits are not finite")
            return
        if b"SLOW" in text:
            time.sleep(SLOW_S)
        token_id = reply.pop(0)
        logprobs = [self.logprobs(token_id, submit)] if submit.sampling.top_logprobs is not None else []
        self.send(Tokens(submit.request_id, [token_id], logprobs))
        done = min(len(submit.input_ids) + 1, submit.max_tokens)
        if token_id in submit.stop_ids:
            self.finish(submit.request_id, "stop", done)
        elif not reply:
            self.finish(submit.request_id, "length", done)

    def logprobs(self, token_id: int, submit: Submit) -> TokenLogprobs:
        best = [(token_id + k) % 256 for k in range(submit.sampling.top_logprobs or 0)]
        return TokenLogprobs(token_id, -0.5, best, [-0.5 - k for k in range(len(best))])

    def finish(self, request_id: str, reason: str, tokens: int, message: str | None = None) -> None:
        del self.running[request_id]
        self.send(Finished(request_id, reason, tokens, 0.5, message))

    def send(self, message: Message) -> None:
        self.connection.sendall(protocol.encode(message))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    FakeRank(socket.socket(fileno=parser.parse_args().fd)).run()
