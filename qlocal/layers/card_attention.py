"""Attention of a layer on a card: short runs by the kernel that reads the cache, long ones by torch's flash attention.

A long run reads its older keys back from the cache a bounded piece at a time, so that no more than a piece is ever
unpacked, and no score leaves the chip."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qlocal.cache.conditioning import Conditioning
from qlocal.cache.storage import LayerCache
from qlocal.kernels.native_step import Cache
from qlocal.kernels.triton.attention import KeyAngles, attend
from qlocal.kernels.triton.rotary_store import Heads, Queries, rotary_store
from qlocal.layers.card_inputs import StepInputs, StepLayout
from qlocal.layers.paged_attention import TokenRun

PIECE_TOKENS = 2048
"""Keys and values that are unpacked at a time, in whole blocks; what plan/scratch.py counts."""


@dataclass(frozen=True, eq=False)
class CardAttention:
    """A layer's cache, as kernels and as torch see it. bias: of q, k and v in a row, f32; angles: where the key bias is
    kept out of the cache."""

    heads: Heads
    cache: Cache
    readable: LayerCache
    bias: Tensor | None
    angles: KeyAngles | None

    def __call__(self, parts: Tensor, inputs: StepInputs, layout: StepLayout, dtype: torch.dtype) -> Tensor:
        """Store the step's keys and values, and attend. parts: (S, T, (H + 2 Hk) Dh) f32, whose sum over S is q, k and
        v without bias. Returns (T, H * Dh) of `dtype`."""
        if not layout.long_runs:
            queries = self._store(parts, inputs, 0, layout.tokens)
            return attend(queries, self.cache, inputs.pieces, self._angles, self.heads, dtype)
        out = torch.empty((layout.tokens, self.heads.num_heads * self.heads.head_dim), dtype=dtype, device=parts.device)
        if layout.short_rows:
            self._attend_short(parts, inputs, layout, out)
        for long_run in layout.long_runs:
            first, last = long_run.first_row, long_run.first_row + long_run.run.length
            queries = self._store(parts, inputs, first, last, is_plain=True)
            out[first:last] = self._attend_long(queries.values, long_run.run, inputs.table_of(long_run))
        return out

    @property
    def _angles(self) -> KeyAngles | None:
        return None if self.cache.key_bias is None else self.angles

    def _store(self, parts: Tensor, inputs: StepInputs, first: int, last: int, *, is_plain: bool = False) -> Queries:
        angles = inputs.cos[first:last], inputs.sin[first:last]
        rows, slots = parts[:, first:last], inputs.slots[first:last]
        return rotary_store(rows, self.bias, angles, slots, self.cache, self.heads, is_plain=is_plain)

    def _attend_short(self, parts: Tensor, inputs: StepInputs, layout: StepLayout, out: Tensor) -> None:
        """Write the rows of `out` that pieces cover."""
        stored = [self._store(parts, inputs, first, last) for first, last in layout.short_rows]
        biases = [queries.bias for queries in stored if queries.bias is not None]
        together = Queries(torch.cat([queries.values for queries in stored]), torch.cat(biases) if biases else None)
        attended = attend(together, self.cache, inputs.pieces, self._angles, self.heads, out.dtype)
        row = 0
        for first, last in layout.short_rows:
            out[first:last] = attended[row : row + last - first]
            row += last - first

    def _attend_long(self, queries: Tensor, run: TokenRun, table: Tensor) -> Tensor:
        """Return (t, H * Dh) f32 for rotated queries (t, H, Dh) f32, whose keys are in the cache already. table: the
        run's blocks, on the card."""
        past, length, block_size = run.num_past, run.length, self.heads.block_size
        q = queries.transpose(0, 1).half()  # (H, t, Dh)
        joined = _Joined(q.shape)
        step = max(block_size, PIECE_TOKENS // block_size * block_size)
        for first in range(0, past, step):
            k, v = self._read(table, first, min(first + step, past))
            joined.add(*_see_all(q, k, v))
        own = past // block_size * block_size
        k, v = self._read(table, own, past + length)
        joined.add(*_see_own(q, k[:, past - own :], v[:, past - own :]))
        return joined.result().transpose(0, 1).reshape(length, -1)

    def _read(self, table: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Return K and V of positions from `first`, which begins a block, to `last`: (Hk, n, Dh) f16 each."""
        blocks = table[first // self.heads.block_size : -(-last // self.heads.block_size)]
        k, v = self.readable.read(blocks, last - first, first)
        return k.half(), v.half()


class _Joined:
    """Attention over parts of the keys, added up by how much of the whole each is."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._sum: Tensor | None = None
        self._log_weight: Tensor | None = None

    def add(self, out: Tensor, log_weight: Tensor) -> None:
        """out: (H, t, Dh); log_weight: (H, t) f32, the logarithm of the sum of its weights."""
        if self._sum is None or self._log_weight is None:
            self._sum, self._log_weight = out.float(), log_weight
            return
        both = torch.logaddexp(self._log_weight, log_weight)
        self._sum = self._sum * (self._log_weight - both).exp()[..., None] + out * (log_weight - both).exp()[..., None]
        self._log_weight = both

    def result(self) -> Tensor:
        """Return (H, t, Dh) f32."""
        assert self._sum is not None, "every token sees itself"
        return self._sum


def _see_all(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Let every query (H, t, Dh) see every key (Hk, n, Dh): the query heads of a KV head are rows of one."""
    out, log_weight = _flash(q.reshape(len(k), -1, q.shape[2]), k, v, is_causal=False)
    return out.reshape(q.shape), log_weight.reshape(q.shape[:2])


def _see_own(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Let query i (H, t, Dh) see keys 0 to i (Hk, t, Dh)."""
    group = len(q) // len(k)
    return _flash(q, k.repeat_interleave(group, 0), v.repeat_interleave(group, 0), is_causal=True)


def _flash(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> tuple[Tensor, Tensor]:
    """Return attention (H, t, Dh) and the logarithm of the sum of its weights (H, t) f32, which the public function
    keeps to itself."""
    batch = [x[None].contiguous() for x in (q, k, v)]
    if q.device.type == "cuda":
        out, log_weight, *_ = torch.ops.aten._scaled_dot_product_flash_attention(*batch, 0.0, is_causal, False)
    else:
        out, log_weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*batch, 0.0, is_causal)
    return out[0], log_weight[0, :, : q.shape[1]].float()


def on_card(known: Conditioning, angles: KeyAngles) -> Conditioning:
    """Return what is known of a layer with angles that are added up on the card, not calculated on the host."""
    lanes = angles.of_lanes.float().sum(0)  # (Dh, N)
    half, count = lanes.shape[0] // 2, lanes.shape[1]

    def rotate(x: Tensor, positions: Tensor) -> Tensor:
        tile, lane = angles.of_tiles[positions // count], lanes.T[positions % count]
        (c, s), (cl, sl) = tile.split(half, 1), lane.split(half, 1)  # type: ignore[no-untyped-call]
        cos, sin = (c * cl - s * sl)[:, None], (s * cl + c * sl)[:, None]
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    return replace(known, rotate=rotate)
