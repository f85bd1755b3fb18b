"""The layout in which the Triton kernels read 4- to 8-bit weights, made once at load. Plain torch, no triton.

The columns are cut into chunks of 16 words of 32 bits: 128 columns, or 64 of Q8_0. A chunk is cut into planes of 16
neighbouring columns, and word i of a row holds column i of every plane, the first plane lowest. So plane p of a 4-bit
weight is `(word >> 4 p) & 15` of 16 words, without a shuffle, and meets 16 neighbouring activations; and no type's
scale changes inside a plane. The tensors are chunk-major: a tile of rows is one run of whole 64-byte lines, however
many rows there are.

    codes   (C, N, 16) int32             8 planes of 4 bits, or 4 planes of 8 bits (Q8_0: unsigned, code + 128)
    high    (C, N, 16) uint8 or int16    1 (Q5_K) or 2 (Q6_K) more bits of every plane, the first lowest; else None
    scales  (G, N) float16 or bfloat16   a scale a group, as stored; Q6_K: the block's d, (K / 256, N);
                                         Q4_K and Q5_K: its d, then its dmin, (K / 256 * 2, N)
    fields  what else the values are made of; a chunk has
            affine        1, 1 or 2 rows (N,) uint8   zero points of its 1, 2 or 4 groups, two a byte, the first lower
            Q4_K, Q5_K    3 rows (N,) int16           low 4 bits of its 4 scales; those of its 4 mins; the high 2 bits
                                                      of the scales, then of the mins
            Q6_K          2 rows (N,) int32           signed bytes, the scale of every plane
            Q4_0, Q8_0    None

No shift depends on the chunk or the row: only then does Triton bring the words into the order of the tensor cores
before it decodes them, and not every plane by itself through shared memory (seen in the PTX of Triton 3.9).

Columns that fill up the last chunk have code 0; the kernels read no activation for them. Beside that filling and
the unused half of a lone zero point, nothing takes more room than in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from qlocal.ggml_types import LAYOUTS, GgmlType
from qlocal.kernels import affine_layout
from qlocal.kernels.reference import select_rows
from qlocal.weights import AffineWeight, BlockWeight, DenseWeight, Weight

PLANE_COLUMNS = 16
"""Columns of a plane, words of a row in a chunk: 64 bytes, and the depth of one bf16 tensor-core instruction."""

GROUP_SIZES = (32, 64, 128)

# Columns in all of the rows repacked at a time, so that temporaries stay near 300 MB for any matrix.
_PART_ELEMENTS = 1 << 25


class Kind(StrEnum):
    """What the bits of a packed weight mean; every kernel is compiled for one of them."""

    AFFINE = "affine"
    Q4_0 = "q4_0"
    Q8_0 = "q8_0"
    Q4_K = "q4_k"
    Q5_K = "q5_k"
    Q6_K = "q6_k"

    @property
    def chunk(self) -> int:
        """Columns of a chunk."""
        return 64 if self is Kind.Q8_0 else 128

    @property
    def has_shift(self) -> bool:
        """Say whether something is subtracted after the scale."""
        return self in (Kind.Q4_K, Kind.Q5_K)


_KINDS = {
    GgmlType.Q4_0: Kind.Q4_0,
    GgmlType.Q8_0: Kind.Q8_0,
    GgmlType.Q4_K: Kind.Q4_K,
    GgmlType.Q5_K: Kind.Q5_K,
    GgmlType.Q6_K: Kind.Q6_K,
}


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight (N, K) in the tensors of the module's text, all on one device.

    group_size: columns that share a scale. column_order: (K,) int64, the input column that each packed column
    multiplies, or None where they stand in order."""

    kind: Kind
    shape: tuple[int, int]
    group_size: int
    codes: Tensor
    scales: Tensor
    high: Tensor | None = None
    fields: Tensor | None = None
    column_order: Tensor | None = None

    @property
    def can_be_int8(self) -> bool:
        """Whether groups are as deep as one int8 instruction; Q6_K has a scale for every 16 columns."""
        return self.kind is not Kind.Q6_K

    @property
    def num_bytes(self) -> int:
        """Bytes of the weight that one product reads."""
        tensors = (self.codes, self.high, self.scales, self.fields)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


@dataclass(frozen=True, eq=False)
class _Unpacked:
    """Some rows, not yet chunk-major: codes (R, K) uint8 with all their bits, scales (R, G), fields (R, *)."""

    codes: Tensor
    scales: Tensor
    fields: Tensor | None = None


def unsupported(weight: Weight) -> str | None:
    """Say why a weight has no packed layout, or None where it has one."""
    if isinstance(weight, DenseWeight):
        return "it is not quantized"
    if isinstance(weight, BlockWeight):
        return None if weight.ggml_type in _KINDS else f"there are no Triton kernels for {weight.ggml_type.name}"
    if weight.group_size not in GROUP_SIZES:
        return f"there are no Triton kernels for groups of {weight.group_size} columns"
    return None if affine_layout.has_even_groups(weight) else "its groups are not equally large"


def pack(weight: AffineWeight | BlockWeight, device: torch.device | str) -> PackedWeight:
    """Repack a weight (N, K) that is not `unsupported`, on `device` and for it; any row_map is applied."""
    reason = unsupported(weight)
    assert reason is None, f"the caller asks `unsupported` first: {reason}"
    if isinstance(weight, AffineWeight):
        return _pack_affine(weight, torch.device(device))
    return _pack_blocks(weight, torch.device(device))


def _pack_affine(weight: AffineWeight, device: torch.device) -> PackedWeight:
    order = affine_layout.column_order(weight)
    order = None if order is None else order.to(device)

    def unpack(first: int, last: int) -> _Unpacked:
        codes = _nibbles(weight.codes[first:last].to(device), 1)
        return _Unpacked(
            codes=codes if order is None else codes[:, order],
            scales=weight.scales[first:last].to(device),
            fields=_pair_zero_points(weight.zero_points[first:last].to(device), weight.group_size),
        )

    tensors = _pack_rows(Kind.AFFINE, weight.shape, unpack)
    return PackedWeight(Kind.AFFINE, weight.shape, weight.group_size, **tensors, column_order=order)


def _pair_zero_points(zero_points: Tensor, group_size: int) -> Tensor:
    """Put the zero points (R, G) of a chunk two a byte, the first in the low nibble: (R, C or C * 2) uint8."""
    groups = Kind.AFFINE.chunk // group_size
    if groups == 1:
        return zero_points
    pairs = torch.nn.functional.pad(zero_points, (0, -zero_points.shape[1] % groups))
    return pairs[:, 0::2] | (pairs[:, 1::2] << 4)


def _pack_blocks(weight: BlockWeight, device: torch.device) -> PackedWeight:
    kind = _KINDS[weight.ggml_type]
    group_size = 16 if kind is Kind.Q6_K else 32

    def unpack(first: int, last: int) -> _Unpacked:
        rows = select_rows(weight, torch.arange(first, last, device=weight.blocks.device))
        assert isinstance(rows, BlockWeight), "rows of a BlockWeight are one"
        blocks = rows.blocks.to(device).reshape(-1, LAYOUTS[weight.ggml_type].block_bytes)
        return _UNPACKERS[kind](blocks, last - first)

    return PackedWeight(kind, weight.shape, group_size, **_pack_rows(kind, weight.shape, unpack))


def _pack_rows(kind: Kind, shape: tuple[int, int], unpack: Callable[[int, int], _Unpacked]) -> dict[str, Tensor]:
    """Pack a part of the rows at a time: the tensors of a PackedWeight by name."""
    num_rows, columns = shape
    whole: dict[str, Tensor] = {}
    step = max(1, _PART_ELEMENTS // max(1, columns))
    for first in range(0, num_rows, step):
        last = min(first + step, num_rows)
        for name, part in _pack_part(kind, unpack(first, last)).items():
            if name not in whole:
                whole[name] = part.new_empty((len(part), num_rows, *part.shape[2:]))
            whole[name][:, first:last] = part
    return whole


def _pack_part(kind: Kind, rows: _Unpacked) -> dict[str, Tensor]:
    codes = _chunks(rows.codes, kind.chunk)
    columns_of_a_scale = rows.codes.shape[1] // rows.scales.shape[1]
    missing_scales = -(-len(codes) * kind.chunk // columns_of_a_scale) - rows.scales.shape[1]
    part = {"scales": torch.nn.functional.pad(rows.scales, (0, missing_scales)).T}
    if kind is Kind.Q8_0:
        part["codes"] = _stack_planes(codes, 8, torch.int32)
    else:
        part["codes"] = _stack_planes(codes & 15, 4, torch.int32)
    if kind is Kind.Q5_K:
        part["high"] = _stack_planes(codes >> 4, 1, torch.uint8)
    if kind is Kind.Q6_K:
        part["high"] = _stack_planes(codes >> 4, 2, torch.int16)
    if rows.fields is not None:
        part["fields"] = rows.fields.T
    return part


def _chunks(codes: Tensor, chunk: int) -> Tensor:
    """Cut codes (R, K) into planes, with zeros at the end: (C, R, planes, 16)."""
    num_rows, columns = codes.shape
    codes = torch.nn.functional.pad(codes, (0, -columns % chunk))
    return codes.reshape(num_rows, -1, chunk // PLANE_COLUMNS, PLANE_COLUMNS).transpose(0, 1)


def _stack_planes(planes: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Lay planes (C, R, planes, 16) of `bits` bits over one another, the first lowest: (C, R, 16) of `dtype`."""
    words = planes[:, :, 0].to(dtype)
    for plane in range(1, planes.shape[2]):
        words |= planes[:, :, plane].to(dtype) << (bits * plane)
    return words


def _nibbles(data: Tensor, run: int) -> Tensor:
    """Unpack bytes (R, L): of every `run` bytes first all low nibbles, then all high ones. (R, 2 L) uint8."""
    runs = data.reshape(len(data), -1, 1, run)
    return torch.cat([runs & 15, runs >> 4], dim=2).reshape(len(data), -1)


def _bits(data: Tensor, bits: int) -> Tensor:
    """Unpack bytes (R, P, L) into fields of `bits` bits: (R, P * 8 / bits * L) uint8, all lowest fields first."""
    fields = [(data >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return torch.stack(fields, dim=2).reshape(len(data), -1)


def _halves(blocks: Tensor, at: int, num_rows: int) -> Tensor:
    """Read the float16 at byte `at` of every block (B, bytes): (R, B / R) float16."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).reshape(num_rows, -1)


def _unpack_q4_0(blocks: Tensor, num_rows: int) -> _Unpacked:
    return _Unpacked(_nibbles(blocks[:, 2:], 16).reshape(num_rows, -1), _halves(blocks, 0, num_rows))


def _unpack_q8_0(blocks: Tensor, num_rows: int) -> _Unpacked:
    # Flipping the sign bit of a two's complement byte adds 128 to it as an unsigned one.
    return _Unpacked((blocks[:, 2:] ^ 128).reshape(num_rows, -1), _halves(blocks, 0, num_rows))


def _unpack_q4_k(blocks: Tensor, num_rows: int) -> _Unpacked:
    return _with_six_bit_pairs(blocks, _nibbles(blocks[:, 16:], 32), num_rows)


def _unpack_q5_k(blocks: Tensor, num_rows: int) -> _Unpacked:
    codes = _nibbles(blocks[:, 48:], 32) | (_bits(blocks[:, None, 16:48], 1) << 4)
    return _with_six_bit_pairs(blocks, codes, num_rows)


def _unpack_q6_k(blocks: Tensor, num_rows: int) -> _Unpacked:
    codes = _nibbles(blocks[:, :128], 64) | (_bits(blocks[:, 128:192].reshape(-1, 2, 32), 2) << 4)
    plane_scales = blocks[:, 192:208].contiguous().view(torch.int32).reshape(num_rows, -1)
    return _Unpacked(codes.reshape(num_rows, -1), _halves(blocks, 208, num_rows), plane_scales)


def _with_six_bit_pairs(blocks: Tensor, codes: Tensor, num_rows: int) -> _Unpacked:
    """Unpack the first 16 bytes of Q4_K's and Q5_K's blocks: d and dmin, scales and mins of 8 sub-blocks.

    In the file a scale's or min's six bits lie together for the first four sub-blocks, apart for the others."""
    first, second, third = (blocks[:, at : at + 4].to(torch.int16) for at in (4, 8, 12))
    scales = torch.stack([first & 63, (third & 15) | ((first >> 6) << 4)], dim=1)
    mins = torch.stack([second & 63, (third >> 4) | ((second >> 6) << 4)], dim=1)
    words = [_sum_fields(scales & 15, 4), _sum_fields(mins & 15, 4)]
    words.append(_sum_fields(torch.cat([scales >> 4, mins >> 4], dim=2), 2))
    return _Unpacked(
        codes=codes.reshape(num_rows, -1),
        scales=blocks[:, :4].contiguous().view(torch.float16).reshape(num_rows, -1),
        fields=torch.stack(words, dim=2).reshape(num_rows, -1),
    )


def _sum_fields(values: Tensor, bits: int) -> Tensor:
    """Put values (B, 2, 16 / bits) int16 into one word a chunk, the first lowest: (B, 2) int16."""
    return _stack_planes(values.unsqueeze(3), bits, torch.int16).squeeze(2)


_UNPACKERS: dict[Kind, Callable[[Tensor, int], _Unpacked]] = {
    Kind.Q4_0: _unpack_q4_0,
    Kind.Q8_0: _unpack_q8_0,
    Kind.Q4_K: _unpack_q4_k,
    Kind.Q5_K: _unpack_q5_k,
    Kind.Q6_K: _unpack_q6_k,
}
