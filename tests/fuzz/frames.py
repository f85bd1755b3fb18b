"""Damaged messages between server and engine: what one sends that has lost its mind, or another version."""

from __future__ import annotations

from random import Random
from typing import Any

import msgpack

from qlocal import protocol
from tests.fuzz.lies import EDGES, NAMES, VALUES, Liar
from tests.test_protocol import MESSAGES

_WIRED = [value for value in VALUES if not isinstance(value, int) or -(1 << 63) <= value < 1 << 64]
_OTHERS: list[Any] = [*_WIRED, b"\xff" * 9, [[]] * 4, {"a": [1]}, {1: 2}, float("nan"), *EDGES, *NAMES]


def frame(rng: Random) -> bytes:
    """Return a frame: a message with values that are others, fields too many or too few, then damaged bytes."""
    liar = Liar(rng)
    values = msgpack.unpackb(protocol.encode(rng.choice(MESSAGES))[4:], strict_map_key=False)
    _lie(liar, values)
    if liar.lies():
        values[rng.choice((*NAMES, "type", "request_id", "nonce", 5))] = rng.choice((*_WIRED, "tokens", "ready"))
    payload = bytes(msgpack.packb(values))
    for _ in range(rng.choice((0, 1, 1, 3))):
        payload = liar.damaged(payload)
    length = len(payload) if not liar.lies() else liar.number(len(payload), 32)
    return protocol.HEADER.pack(length) + payload


def read(rng: Random) -> bool:
    """Read a frame as server and engine do, which ends in a message that can be sent on, or in an EngineError."""
    data = frame(rng)
    message = protocol.decode(data[4 : 4 + protocol.frame_length(data[:4])])
    assert type(message) in protocol.Message.kinds.values()
    return True


def _lie(liar: Liar, values: dict[Any, Any]) -> None:
    for name, value in list(values.items()):
        if isinstance(value, dict):
            _lie(liar, value)
        if liar.lies():
            values[name] = liar.rng.choice(_OTHERS)
        elif liar.rng.random() < 0.01:
            del values[name]
