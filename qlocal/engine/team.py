"""The other ranks of this machine: started as processes of this one, watched, and ended with it."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from tempfile import TemporaryDirectory

from qlocal.endings import ending
from qlocal.engine.connection import Closed, Connection
from qlocal.errors import EngineError
from qlocal.parallel.rendezvous import leave
from qlocal.protocol import Failed, Join

LOST_CONTACT = "another rank went away"
RANK_COMMAND = (sys.executable, "-m", "qlocal.engine.rank")
END_GRACE_S = 5.0
REASON_WAIT_S = 2.0
"""How long after a broken exchange a rank that has ended is looked for."""

_LOOK_S = 1.0


@dataclass(frozen=True)
class _Member:
    rank: int
    device: str
    process: subprocess.Popen[bytes]
    connection: Connection


class Team:
    """Ranks that this process has started, possibly none. folder: where they meet, removed at the end."""

    def __init__(self, joins: Sequence[tuple[Join, str]], folder: TemporaryDirectory[str] | None = None) -> None:
        """Start a process for every (join, device)."""
        self._folder = folder
        self._is_ending = False
        self._members: list[_Member] = []
        try:
            for join, device in joins:
                self._members.append(_start(join, device))
        except OSError as error:
            self.end()
            raise EngineError(f"the process of another rank could not be started: {error}") from error

    @property
    def sockets(self) -> list[socket.socket]:
        """What becomes readable when a rank ends or says why it must."""
        return [member.connection.socket for member in self._members]

    def check(self) -> None:
        """Raise EngineError with the reason when a rank has ended, other than because rank 0 let it."""
        reasons = [reason for member in [*self._members] if (reason := self._reason(member)) is not None]
        if reasons:
            # Where one rank is lost, the others lose it too and say so: what counts is what it says itself.
            raise min(reasons, key=lambda reason: LOST_CONTACT in reason.message)

    def _reason(self, member: _Member) -> EngineError | None:
        """Return why a rank has ended, None while it runs; one that ended in order is forgotten."""
        name = f"rank {member.rank} ({member.device})"
        try:
            for message in member.connection.receive(wait=False):
                if isinstance(message, Failed):
                    return EngineError(f"{name}: {message.message}", hint=message.hint)
        except Closed:
            code = _exit_code(member.process)
            if code != 0:
                return EngineError(ending(name, code))
            self._members.remove(member)
        return None

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Turn the errors of a broken exchange into the reason why a rank ended."""
        try:
            yield
        except RuntimeError as error:
            if not is_lost_contact(error):
                raise
            select.select(self.sockets, [], [], REASON_WAIT_S)
            self.check()
            raise EngineError("a rank on another machine went away", hint="Its own output says why.") from error

    def watch(self, on_loss: Callable[[EngineError], None]) -> None:
        """Call `on_loss` from a thread when a rank ends, for a process that waits elsewhere."""

        def run() -> None:
            while self._members and not self._is_ending:
                try:
                    select.select(self.sockets, [], [], _LOOK_S)
                    self.check()
                except EngineError as error:
                    on_loss(error)
                    return
                except (OSError, ValueError):  # a socket that `end` has closed meanwhile
                    assert self._is_ending, "nothing else closes them"

        if self._members:
            threading.Thread(target=run, name="team", daemon=True).start()

    def end(self) -> None:
        """End what still runs: a rank ends when its socket closes, or after a while."""
        self._is_ending = True
        for member in self._members:
            member.connection.socket.close()
        deadline = time.monotonic() + END_GRACE_S
        for member in self._members:
            with suppress(subprocess.TimeoutExpired):
                member.process.wait(max(0.0, deadline - time.monotonic()))
            member.process.kill()
            member.process.wait()
        self._members.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def leave(self) -> None:
        """End the others, and this process's part in their exchanges."""
        self.end()
        leave()


def _start(join: Join, device: str) -> _Member:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [*RANK_COMMAND, "--fd", str(theirs.fileno())], pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL
        )
    connection = Connection(ours)
    with suppress(Closed):  # one that has ended already is noticed when it is waited for
        connection.send(join)
    return _Member(join.rank, device, process, connection)


def _exit_code(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(REASON_WAIT_S)
    except subprocess.TimeoutExpired:  # it has closed its socket, and hangs
        process.kill()
        return process.wait()


def is_lost_contact(error: RuntimeError) -> bool:
    """Whether it comes from an exchange, as far as torch lets one tell: gloo raises plain RuntimeErrors."""
    from torch.distributed import DistError  # heavy, and only needed when something broke

    return isinstance(error, DistError) or "gloo" in str(error)
