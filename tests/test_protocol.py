from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlocal import protocol
from qlocal.errors import EngineError
from qlocal.protocol import (
    FindSession,
    Finished,
    Load,
    Pong,
    Queued,
    ReadBlock,
    Ready,
    Sampling,
    SaveSession,
    Session,
    Started,
    Submit,
    TokenLogprobs,
    Tokens,
    WriteBlock,
)
from qlocal.schema import HeldHead

SAMPLING = Sampling(temperature=0.7, top_k=20, seed=1, logit_bias={5: -1.0}, top_logprobs=2)
MESSAGES = [
    Load("model", ["cpu"], max_context=128, head="q8_0"),
    Ready(128, 8, {"head": "q8_0"}, ["cpu"], 100, 0.5, HeldHead("q8_0", 3e-5, 512, 272)),
    Submit("r1", [1, 2, 3], 16, [7], SAMPLING, num_tokens=300),
    Queued("r1", 2),
    Started("r1", 3, 2, 0.1, [TokenLogprobs(1, -0.5, [1, 2], [-0.5, -1.0])]),
    Tokens("r1", [4], [TokenLogprobs(4, -0.1)]),
    Finished("r1", "stop", 1, 0.2),
    Pong(3, 1, 0, 5, 8, 2),
    SaveSession(4, "book", "model", [1, 2]),
    FindSession(5, "book"),
    Session(5, 0, 0, [1, 2], "it differs", "Save it again."),
    ReadBlock(7),
    WriteBlock(7),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_survives_the_wire(message: protocol.Message) -> None:
    frame = protocol.encode(message)
    assert protocol.frame_length(frame[:4]) == len(frame) - 4
    assert protocol.decode(frame[4:]) == message


@given(st.binary(max_size=200))
def test_foreign_bytes_are_an_engine_error(payload: bytes) -> None:
    with pytest.raises(EngineError):
        protocol.decode(payload)


def test_unknown_types_and_fields_are_refused() -> None:
    for values in ({"type": "nothing"}, {"type": "ping", "nonce": 1, "more": 2}, {"type": "submit"}, [1], 5):
        with pytest.raises(EngineError):
            protocol.decode(msgpack.packb(values))


def test_a_frame_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(EngineError, match="limit"):
        protocol.frame_length(protocol.HEADER.pack(protocol.MAX_FRAME_BYTES + 1))
