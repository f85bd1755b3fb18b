"""What a hostile file says where the truth was expected: numbers at the edges, strange names, damaged bytes."""

from __future__ import annotations

import struct
from random import Random
from typing import Any

EDGES = (0, 1, 2, 3, 7, 8, 31, 33, 63, 65, 255, 256, 65_535, 65_537, 1 << 20, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 40,
         (1 << 40) + 1, 1 << 48, 1 << 53, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
NAMES = (
    "",
    "a",
    "a" * 63,
    "a" * 64,
    "a" * 1025,
    "\x1b]0;x\x07",
    "a\0b",
    "\u202ea",
    "\U000e0041",
    "../a",
    "Ã¤",
    "ä今😀",
    "a\nb",
    "\ufffe",
)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 1 << 31, 1 << 70, -(1 << 70), 0.0, -0.5, 1e-300, 1e300, "", "4", "\x1b[2J",
    "silu", "yarn", "llama3", "linear", [], [0], [[]], [None] * 3, {}, {"type": "yarn", "factor": 4.0},
    {"rope_type": "linear"}, {"rope_type": "factors"}, {"rope_type": "factors", "factors": ["x"]},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0}, {"a": {"b": 1}}, "qwen2", "awq", "gptq", 4, 32, 128,
)  # fmt: skip


class Liar:
    """Tells the truth, but for a share of its statements that is drawn anew for every file."""

    def __init__(self, rng: Random, share: float | None = None) -> None:
        self.rng = rng
        self.share = rng.choice((0.01, 0.05, 0.3)) if share is None else share

    def lies(self) -> bool:
        return self.share > 0 and self.rng.random() < self.share

    def number(self, truth: int, bits: int = 64) -> int:
        """Return `truth`, or another number of `bits`."""
        if not self.lies():
            return truth
        near = truth + self.rng.choice((-1, 1, 8, -8))
        return self.rng.choice((near, truth * 2, *EDGES)) & ((1 << bits) - 1)

    def u32(self, truth: int) -> bytes:
        return struct.pack("<I", self.number(truth, 32))

    def u64(self, truth: int) -> bytes:
        return struct.pack("<Q", self.number(truth))

    def name(self, truth: str) -> bytes:
        """Return a name in UTF-8, or bytes that are none."""
        if not self.lies():
            return truth.encode()
        return self.rng.choice((b"\xff\xfe", b"\xed\xa0\x80", *(n.encode() for n in NAMES)))

    def value(self, truth: Any) -> Any:
        """Return a JSON value."""
        return self.rng.choice(VALUES) if self.lies() else truth

    def damaged(self, data: bytes) -> bytes:
        """Return `data` cut off, with bytes flipped, repeated or in between; whole where no lie is told."""
        if not self.lies() or not data:
            return data
        at = self.rng.randrange(len(data))
        kind = self.rng.randrange(5)
        if kind == 0:
            return data[:at]
        if kind == 1:
            return data[:at] + bytes((data[at] ^ 1 << self.rng.randrange(8),)) + data[at + 1 :]
        if kind == 2:
            return data[:at] + data[at : at + 16] + data[at:]
        if kind == 3:
            return data + self.rng.randbytes(self.rng.randrange(1, 40))
        return data[:at] + self.rng.randbytes(4) + data[at + 4 :]
