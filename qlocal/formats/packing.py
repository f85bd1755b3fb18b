"""Four-bit codes in int32 words: AWQ's, GPTQ's and the neutral order. Whole-tensor operations on any device.

Neutral codes: (N, K/2) uint8, column 2j in the low nibble of byte j. Nibble i of a word is bits 4i..4i+3; on a
little-endian machine nibbles 2b and 2b+1 are byte b, which is what every function below relies on.
"""

from __future__ import annotations

import torch
from torch import Tensor

# AWQ: nibble i of a word holds column AWQ_ORDER[i] of its eight; column j lies in nibble AWQ_INVERSE[j].
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
AWQ_INVERSE = (0, 4, 1, 5, 2, 6, 3, 7)
# So nibble h of byte 2a + b is column 4b + 2h + a: in whole words, column bits are permuted, which the views below do.
_LOW_NIBBLES = 0x0F0F0F0F


def pack_codes(codes: Tensor) -> Tensor:
    """Pack (N, K) uint8 0..15 into neutral codes (N, K/2) uint8."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack_codes(packed: Tensor) -> Tensor:
    """Unpack neutral codes (N, K/2) uint8 into (N, K) uint8."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)


def codes_from_gptq(qweight: Tensor) -> Tensor:
    """Turn GPTQ's (K/8, N) int32, packed along K, into neutral codes (N, K/2): the words are the same."""
    return qweight.T.contiguous().view(torch.uint8)


def codes_to_gptq(packed: Tensor) -> Tensor:
    """Turn neutral codes (N, K/2) into GPTQ's (K/8, N) int32."""
    return packed.contiguous().view(torch.int32).T.contiguous()


def codes_from_awq(qweight: Tensor) -> Tensor:
    """Turn AWQ's (K, N/8) int32, interleaved along N, into neutral codes (N, K/2)."""
    half, words = qweight.shape[0] // 2, qweight.shape[1]
    even, odd = qweight[0::2], qweight[1::2]  # (K/2, N/8): inputs 2j and 2j+1
    low = (even & _LOW_NIBBLES) | ((odd & _LOW_NIBBLES) << 4)
    high = ((even >> 4) & _LOW_NIBBLES) | (odd & ~_LOW_NIBBLES)
    codes = torch.empty((words, 2, 2, 2, half), dtype=torch.uint8, device=qweight.device)
    for h, merged in enumerate((low, high)):
        # Transposed as words first: moving single bytes over such strides takes four times as long.
        octets = merged.T.contiguous().view(torch.uint8).view(words, half, 2, 2)
        codes[:, :, h] = octets.permute(0, 3, 2, 1)
    return codes.view(words * 8, half)


def codes_to_awq(packed: Tensor) -> Tensor:
    """Turn neutral codes (N, K/2) into AWQ's (K, N/8) int32."""
    words, half = packed.shape[0] // 8, packed.shape[1]
    columns = packed.reshape(words, 2, 2, 2, half)
    octets = [columns[:, :, h].permute(0, 3, 2, 1).contiguous() for h in range(2)]
    low, high = (o.flatten(1).view(torch.int32).T for o in octets)  # (K/2, N/8)
    even = (low & _LOW_NIBBLES) | ((high & _LOW_NIBBLES) << 4)
    odd = ((low >> 4) & _LOW_NIBBLES) | (high & ~_LOW_NIBBLES)
    return torch.stack((even, odd), dim=1).reshape(half * 2, words)


def zeros_from_words(qzeros: Tensor, order: tuple[int, ...] | None = None) -> Tensor:
    """Unpack (G, N/8) int32, packed along N, into (N, G) uint8; `order` is AWQ_INVERSE for AWQ's interleaving."""
    groups, words = qzeros.shape
    nibbles = unpack_codes(qzeros.contiguous().view(torch.uint8)).view(groups, words, 8)
    if order is not None:
        nibbles = nibbles[:, :, list(order)]
    return nibbles.reshape(groups, words * 8).T.contiguous()


def zeros_to_words(zero_points: Tensor, order: tuple[int, ...] | None = None) -> Tensor:
    """Pack (N, G) uint8 0..15 into (G, N/8) int32; `order` is AWQ_ORDER for AWQ's interleaving."""
    outputs, groups = zero_points.shape
    nibbles = zero_points.T.reshape(groups, outputs // 8, 8)
    if order is not None:
        nibbles = nibbles[:, :, list(order)]
    return pack_codes(nibbles.reshape(groups, outputs)).contiguous().view(torch.int32)
