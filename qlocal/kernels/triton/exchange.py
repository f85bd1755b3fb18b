"""The sum over the ranks of a tensor split, with residual and norm: through memory of the host that all cards see.

A packet of eight bytes holds numbers and the number of the exchange, so that whoever sees the one sees the other: no
fence, no second flag (the LL protocol of NCCL). A rank writes its own packets and polls those of the others. Every rank
adds in the order of the ranks, what it rounded itself included: all get the same bits.
"""

# The arguments of kernels are pointers, blocks and constants of the compiler, for which Python has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from qlocal.kernels.triton.decode import COMPILER_OPTIONS

SLOTS = 2
"""A rank may be one exchange ahead of another, never two: its next but one needs what the other sends in between."""
PATIENCE = 1 << 26
"""How often a packet is looked for: a look over PCIe takes more than a microsecond, so this is a minute and more."""
_VALUES_PER_THREAD = 16


@dataclass(frozen=True, eq=False)
class Mailbox:
    """Where ranks leave their packets. packets: (ranks, SLOTS, rows, packets of a row) int64, the same memory for all,
    zeros at first. turns: (rows,) int32, this rank's exchanges of each row so far, on its own device. rank: this one.
    wire: bfloat16 (two numbers a packet) or float32 (one)."""

    packets: Tensor
    turns: Tensor
    rank: int
    wire: torch.dtype

    @property
    def rows(self) -> int:
        return self.packets.shape[2]


@triton.jit(do_not_specialize=["T", "num_parts", "rows", "patience"])
def exchange_add_norm_kernel(
    stream_ptr, parts_ptr, weight_ptr, out_ptr, packets_ptr, turns_ptr, T, D, num_parts, rows, patience, eps,
    BLOCK: tl.constexpr, RANK: tl.constexpr, SIZE: tl.constexpr, IS_PAIR: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """stream (T, D) float32, added to in place; parts (num_parts, T, D) float32, this rank's; weight (D,) float32; out
    (T, D), any float; packets and turns as of a Mailbox; all contiguous. Grid: (T,): a program holds a whole row,
    BLOCK >= packets of a row. Where a rank does not answer within `patience` looks, the row becomes NaN."""
    row = tl.program_id(0).to(tl.int64)
    lanes: tl.constexpr = 2 if IS_PAIR else 1
    places = tl.arange(0, BLOCK)
    num_packets = D // lanes
    mask = places < num_packets
    columns = lanes * places
    turn = tl.load(turns_ptr + row) + 1
    first = tl.zeros((BLOCK,), tl.float32)
    second = tl.zeros((BLOCK,), tl.float32)
    for part in range(num_parts):
        at = parts_ptr + (part * T + row) * D + columns
        first += tl.load(at, mask=mask, other=0.0)
        if IS_PAIR:
            second += tl.load(at + 1, mask=mask, other=0.0)
    if IS_PAIR:
        low = first.to(tl.bfloat16).to(tl.uint16, bitcast=True).to(tl.int64)
        bits = (second.to(tl.bfloat16).to(tl.uint16, bitcast=True).to(tl.int64) << 16) | low
    else:
        bits = first.to(tl.uint32, bitcast=True).to(tl.int64)
    number = turn.to(tl.int64)
    slot = number & 1
    own = packets_ptr + ((RANK * 2 + slot) * rows + row) * num_packets + places
    tl.store(own, (number << 32) | bits, mask=mask, cache_modifier=".wt")
    x = tl.load(stream_ptr + row * D + columns, mask=mask, other=0.0)
    y = tl.zeros((BLOCK,), tl.float32)
    if IS_PAIR:
        y = tl.load(stream_ptr + row * D + columns + 1, mask=mask, other=0.0)
    total = tl.zeros((BLOCK,), tl.float32)
    second_total = tl.zeros((BLOCK,), tl.float32)
    for rank in tl.static_range(SIZE):
        there = bits
        if rank != RANK:
            box = packets_ptr + ((rank * 2 + slot) * rows + row) * num_packets + places
            packet = tl.load(box, mask=mask, other=0, volatile=True)
            missing = tl.sum((mask & ((packet >> 32) != number)).to(tl.int32), axis=0)
            looks = 0
            while (missing > 0) & (looks < patience):
                packet = tl.load(box, mask=mask, other=0, volatile=True)
                missing = tl.sum((mask & ((packet >> 32) != number)).to(tl.int32), axis=0)
                looks += 1
            # The bits of NaN in both types of the wire.
            there = tl.where((packet >> 32) == number, packet, 0x7FC07FC0)
        if IS_PAIR:
            total += (there & 0xFFFF).to(tl.uint16).to(tl.bfloat16, bitcast=True).to(tl.float32)
            second_total += ((there >> 16) & 0xFFFF).to(tl.uint16).to(tl.bfloat16, bitcast=True).to(tl.float32)
        else:
            total += (there & 0xFFFFFFFF).to(tl.uint32).to(tl.float32, bitcast=True)
    x += total
    tl.store(stream_ptr + row * D + columns, x, mask=mask)
    x = tl.where(mask, x, 0.0)
    if IS_PAIR:
        y += second_total
        tl.store(stream_ptr + row * D + columns + 1, y, mask=mask)
        y = tl.where(mask, y, 0.0)
    squares = tl.sum(x * x + y * y, axis=0)
    if HAS_NORM:
        scale = tl.rsqrt(squares / D + eps)
        weight = tl.load(weight_ptr + columns, mask=mask, other=0.0)
        tl.store(out_ptr + row * D + columns, (x * scale * weight).to(out_ptr.dtype.element_ty), mask=mask)
        if IS_PAIR:
            weight = tl.load(weight_ptr + columns + 1, mask=mask, other=0.0)
            tl.store(out_ptr + row * D + columns + 1, (y * scale * weight).to(out_ptr.dtype.element_ty), mask=mask)
    # Behind a sum of the whole program: no thread still reads the old number.
    tl.store(turns_ptr + row, turn)


def exchange_add_norm(
    stream: Tensor,
    parts: Tensor,
    weight: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    mailbox: Mailbox,
    patience: int = PATIENCE,
) -> Tensor | None:
    """Add what the products of all ranks gave to the residual stream, in place, and return its norm.

    stream: (T, D) f32, the same on all ranks, T <= mailbox.rows. parts: (S, T, D) f32, this rank's, whose sum over S is
    rounded to the wire's type. weight: (D,) f32, or None where nothing is to be normed. Returns (T, D) of `dtype`, or
    None. Every rank calls it for the same T in the same order. NaN where one does not."""
    tokens, width = stream.shape
    ranks, slots, rows, num_packets = mailbox.packets.shape
    is_pair = mailbox.wire == torch.bfloat16
    assert stream.is_contiguous() and parts.is_contiguous() and parts.shape[1:] == stream.shape
    assert slots == SLOTS and tokens <= rows and num_packets * (2 if is_pair else 1) == width, "made for this width"
    out = None if weight is None else torch.empty((tokens, width), dtype=dtype, device=stream.device)
    block = triton.next_power_of_2(num_packets)
    exchange_add_norm_kernel[(tokens,)](
        stream, parts, stream if weight is None else weight, stream if out is None else out, mailbox.packets,
        mailbox.turns, tokens, width, len(parts), rows, patience, eps,
        BLOCK=block, RANK=mailbox.rank, SIZE=ranks, IS_PAIR=is_pair, HAS_NORM=weight is not None,
        num_warps=num_warps_for(width), **COMPILER_OPTIONS,
    )  # fmt: skip
    return out


def num_warps_for(width: int) -> int:
    """Return the warps of a program that holds `width` values."""
    block: int = triton.next_power_of_2(width)
    return max(1, min(16, block // (32 * _VALUES_PER_THREAD)))
