"""Values of the GGML block types in plain torch, float32, in the order of operations that ggml itself uses.

A decoder takes `blocks` (B, block_bytes) uint8 and returns (B, block_size) float32. Layouts: `docs/formats.md`.
Every step is one rounded float32 operation (no fused multiply-add), so results agree bit for bit with ggml's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qlocal.ggml_types import LAYOUTS, GgmlType

IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

Decoder = Callable[[Tensor], Tensor]


def _half(blocks: Tensor, at: int) -> Tensor:
    """Read the float16 at byte `at` of every block: (B, 1) float32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _fields(values: Tensor, bits: int, count: int) -> Tensor:
    """Split bytes (..., L) into their `count` fields of `bits` bits: (..., count, L), lowest field first."""
    shifts = torch.arange(count, dtype=torch.uint8, device=values.device) * bits
    return (values.unsqueeze(-2) >> shifts.unsqueeze(-1)) & ((1 << bits) - 1)


def _nibbles(qs: Tensor, run: int) -> Tensor:
    """Unpack bytes (B, L): of every `run` bytes first all low nibbles, then all high ones. (B, 2 L) uint8."""
    return _fields(qs.reshape(len(qs), -1, run), 4, 2).reshape(len(qs), -1)


def _bits(words: Tensor) -> Tensor:
    """Unpack bytes (B, 4) of a little-endian u32: (B, 32) uint8, element j is bit j."""
    return _fields(words, 1, 8).transpose(1, 2).reshape(len(words), 32)


def _scale_subblocks(scales: Tensor, codes: Tensor) -> Tensor:
    """Multiply codes (B, 256) by one scale (B, S) a sub-block."""
    values = scales.unsqueeze(2) * codes.reshape(len(codes), scales.shape[1], -1).float()
    return values.reshape(len(codes), -1)


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:], 16).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:], 16).float() + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[:, 6:], 16) | (_bits(blocks[:, 2:6]) << 4)
    return _half(blocks, 0) * (codes.float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[:, 8:], 16) | (_bits(blocks[:, 4:8]) << 4)
    return _half(blocks, 0) * codes.float() + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].contiguous().view(torch.int8).float()


def _q2_k(blocks: Tensor) -> Tensor:
    scales = _half(blocks, 80) * (blocks[:, :16] & 15).float()
    mins = _half(blocks, 82) * (blocks[:, :16] >> 4).float()
    codes = _fields(blocks[:, 16:80].reshape(-1, 2, 32), 2, 4).reshape(-1, 256)
    return _scale_subblocks(scales, codes) - mins.repeat_interleave(16, dim=1)


def _q3_k(blocks: Tensor) -> Tensor:
    packed = blocks[:, 96:108]
    low = _nibbles(packed[:, :8], 8)
    high = _fields(packed[:, 8:], 2, 4).reshape(-1, 16)
    scales = _half(blocks, 108) * ((low | (high << 4)).float() - 32)
    codes = _fields(blocks[:, 32:96].reshape(-1, 2, 32), 2, 4).reshape(-1, 256)
    high_bits = _fields(blocks[:, :32], 1, 8).reshape(-1, 256)
    return _scale_subblocks(scales, codes.float() - 4 * (1 - high_bits.float()))


def _six_bit_pairs(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Unpack the 12 bytes of Q4_K and Q5_K: 8 scales and 8 mins, both (B, 8) float32."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([first & 63, (third & 15) | ((first >> 6) << 4)], dim=1)
    mins = torch.cat([second & 63, (third >> 4) | ((second >> 6) << 4)], dim=1)
    return scales.float(), mins.float()


def _scale_and_shift(blocks: Tensor, codes: Tensor) -> Tensor:
    """Apply Q4_K's and Q5_K's d, dmin (bytes 0..3) and packed pairs (bytes 4..15) to codes (B, 256)."""
    scales, mins = _six_bit_pairs(blocks[:, 4:16])
    shift = (_half(blocks, 2) * mins).repeat_interleave(32, dim=1)
    return _scale_subblocks(_half(blocks, 0) * scales, codes) - shift


def _q4_k(blocks: Tensor) -> Tensor:
    return _scale_and_shift(blocks, _nibbles(blocks[:, 16:], 32))


def _q5_k(blocks: Tensor) -> Tensor:
    high = _fields(blocks[:, 16:48], 1, 8).reshape(-1, 256)
    return _scale_and_shift(blocks, _nibbles(blocks[:, 48:], 32) | (high << 4))


def _q6_k(blocks: Tensor) -> Tensor:
    high = _fields(blocks[:, 128:192].reshape(-1, 2, 32), 2, 4).reshape(-1, 256)
    codes = _nibbles(blocks[:, :128], 64) | (high << 4)
    scales = _half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8).float()
    return _scale_subblocks(scales, codes.float() - 32)


def _levels(codes: Tensor) -> Tensor:
    return torch.tensor(IQ4_LEVELS, dtype=torch.float32, device=codes.device)[codes.long()]


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _levels(_nibbles(blocks[:, 2:], 16))


def _iq4_xs(blocks: Tensor) -> Tensor:
    low = _fields(blocks[:, 4:8], 4, 2).transpose(1, 2).reshape(-1, 8)
    high = _fields(blocks[:, 2:4], 2, 4).transpose(1, 2).reshape(-1, 8)
    scales = _half(blocks, 0) * ((low | (high << 4)).float() - 32)
    return _scale_subblocks(scales, _levels(_nibbles(blocks[:, 8:], 16)))


def _as_floats(dtype: torch.dtype) -> Decoder:
    return lambda blocks: blocks.contiguous().view(dtype).float()


DECODERS: dict[GgmlType, Decoder] = {
    GgmlType.F32: _as_floats(torch.float32),
    GgmlType.F16: _as_floats(torch.float16),
    GgmlType.BF16: _as_floats(torch.bfloat16),
    GgmlType.Q4_0: _q4_0,
    GgmlType.Q4_1: _q4_1,
    GgmlType.Q5_0: _q5_0,
    GgmlType.Q5_1: _q5_1,
    GgmlType.Q8_0: _q8_0,
    GgmlType.Q2_K: _q2_k,
    GgmlType.Q3_K: _q3_k,
    GgmlType.Q4_K: _q4_k,
    GgmlType.Q5_K: _q5_k,
    GgmlType.Q6_K: _q6_k,
    GgmlType.IQ4_NL: _iq4_nl,
    GgmlType.IQ4_XS: _iq4_xs,
}


def decode_rows(rows: Tensor, ggml_type: GgmlType) -> Tensor:
    """Return the values of whole rows.

    rows: (N, row_bytes) uint8, row_bytes a multiple of the type's block_bytes. Returns (N, K) float32.
    """
    num_rows, row_bytes = rows.shape
    block_bytes = LAYOUTS[ggml_type].block_bytes
    assert row_bytes % block_bytes == 0, f"{row_bytes} bytes a row are no whole number of {ggml_type.name} blocks"
    columns = row_bytes // block_bytes * LAYOUTS[ggml_type].block_size
    if rows.numel() == 0:
        return torch.zeros((num_rows, columns), device=rows.device)
    return DECODERS[ggml_type](rows.reshape(-1, block_bytes)).reshape(num_rows, columns)
