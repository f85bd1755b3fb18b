"""Fields of GGML blocks -> their bytes, for whole matrices at once. No arithmetic: fitting scales is the method's.

Every function returns (N, row_bytes) uint8 on the device of its arguments. B = K / 32 blocks, S = K / 256
super-blocks a row; scales d, m, dmin are float16. Byte layouts: `docs/formats.md`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack_q4_0(d_NB: Tensor, codes_NK: Tensor) -> Tensor:
    """w = d (q - 8). d: (N, B) f16; codes: (N, K) uint8 0..15."""
    return _join(_f16(d_NB), _halves(_blocks(codes_NK, 32)))


def pack_q4_1(d_NB: Tensor, m_NB: Tensor, codes_NK: Tensor) -> Tensor:
    """w = d q + m. d, m: (N, B) f16; codes: (N, K) uint8 0..15."""
    return _join(_f16(d_NB), _f16(m_NB), _halves(_blocks(codes_NK, 32)))


def pack_q5_0(d_NB: Tensor, codes_NK: Tensor) -> Tensor:
    """w = d (q - 16). d: (N, B) f16; codes: (N, K) uint8 0..31."""
    codes = _blocks(codes_NK, 32)
    return _join(_f16(d_NB), _fifth_bits(codes), _halves(codes & 15))


def pack_q5_1(d_NB: Tensor, m_NB: Tensor, codes_NK: Tensor) -> Tensor:
    """w = d q + m. d, m: (N, B) f16; codes: (N, K) uint8 0..31."""
    codes = _blocks(codes_NK, 32)
    return _join(_f16(d_NB), _f16(m_NB), _fifth_bits(codes), _halves(codes & 15))


def pack_q8_0(d_NB: Tensor, codes_NK: Tensor) -> Tensor:
    """w = d q. d: (N, B) f16; codes: (N, K) int8."""
    return _join(_f16(d_NB), _blocks(codes_NK.contiguous().view(torch.uint8), 32))


def pack_q4_k(d_NS: Tensor, dmin_NS: Tensor, scales_NB: Tensor, mins_NB: Tensor, codes_NK: Tensor) -> Tensor:
    """w = d sc q - dmin m. d, dmin: (N, S) f16; scales, mins: (N, B) uint8 0..63; codes: (N, K) uint8 0..15."""
    codes = _blocks(codes_NK, 256)
    return _join(_f16(d_NS), _f16(dmin_NS), _scales_and_mins(scales_NB, mins_NB), _runs_of_64(codes))


def pack_q5_k(d_NS: Tensor, dmin_NS: Tensor, scales_NB: Tensor, mins_NB: Tensor, codes_NK: Tensor) -> Tensor:
    """w = d sc q - dmin m. As pack_q4_k with codes 0..31; bit i of byte l is the fifth bit of sub-block i."""
    codes = _blocks(codes_NK, 256)
    high = _weighted_bits(_split(codes, 8, 32) >> 4, dim=-2)  # (N, S, 32)
    return _join(_f16(d_NS), _f16(dmin_NS), _scales_and_mins(scales_NB, mins_NB), high, _runs_of_64(codes & 15))


def pack_q6_k(d_NS: Tensor, scales_NG: Tensor, codes_NK: Tensor) -> Tensor:
    """w = d sc (q - 32). d: (N, S) f16; scales: (N, K/16) int8; codes: (N, K) uint8 0..63."""
    codes = _split(_blocks(codes_NK, 256), 2, 4, 32)  # (N, S, half, run, 32)
    low = codes & 15
    ql = low[..., :2, :] | (low[..., 2:, :] << 4)  # runs 2 and 3 above runs 0 and 1
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=codes.device).view(4, 1)
    qh = ((codes >> 4) << shifts).sum(dim=-2, dtype=torch.uint8)  # the terms share no bit
    scales = _blocks(scales_NG.contiguous().view(torch.uint8), 16)
    return _join(ql.flatten(2), qh.flatten(2), scales, _f16(d_NS))


def _blocks(values_NK: Tensor, size: int) -> Tensor:
    return _split(values_NK, -1, size)


def _split(values: Tensor, *sizes: int) -> Tensor:
    """Divide the last dimension into `sizes`."""
    return values.reshape(*values.shape[:-1], *sizes)


def _f16(values_NB: Tensor) -> Tensor:
    """Return the two bytes of each float16: (N, B, 2) uint8."""
    assert values_NB.dtype == torch.float16, "the method has rounded d itself and chosen codes for that value"
    return values_NB.contiguous().unsqueeze(-1).view(torch.uint8)


def _halves(codes_NB32: Tensor) -> Tensor:
    """Return 16 bytes a block: element j in the low nibble of byte j, element j + 16 in the high one."""
    return codes_NB32[..., :16] | (codes_NB32[..., 16:] << 4)


def _runs_of_64(codes_NS256: Tensor) -> Tensor:
    """Return 128 bytes: in each run of 64 the first 32 elements are low nibbles, the others high ones."""
    runs = _split(codes_NS256, 4, 2, 32)
    return (runs[..., 0, :] | (runs[..., 1, :] << 4)).flatten(2)


def _fifth_bits(codes_NB32: Tensor) -> Tensor:
    """Return 4 bytes a block: bit j of the little-endian u32 is bit 4 of element j."""
    return _weighted_bits(_split(codes_NB32 >> 4, 4, 8), dim=-1)


def _weighted_bits(bits: Tensor, dim: int) -> Tensor:
    """Put the 8 bits along `dim` into one byte, the first lowest."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    shifts = shifts if dim == -1 else shifts.unsqueeze(-1)
    return (bits << shifts).sum(dim=dim, dtype=torch.uint8)


def _scales_and_mins(scales_NB: Tensor, mins_NB: Tensor) -> Tensor:
    """Return 12 bytes of 8 scales and 8 mins of 6 bits: the upper two bits of the last four sit above the first."""
    sc, m = _blocks(scales_NB, 8), _blocks(mins_NB, 8)
    first = sc[..., :4] | ((sc[..., 4:] >> 4) << 6)
    second = m[..., :4] | ((m[..., 4:] >> 4) << 6)
    third = (sc[..., 4:] & 15) | ((m[..., 4:] & 15) << 4)
    return torch.cat((first, second, third), dim=-1)


def _join(*fields: Tensor) -> Tensor:
    """Put the fields (N, B, bytes) of every block behind each other."""
    return torch.cat(fields, dim=-1).flatten(1)
