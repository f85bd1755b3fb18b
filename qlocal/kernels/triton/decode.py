"""What the bits of a packed weight are worth: the one rule of every kind, shared by all kernels. See `layout.py`.

A value is scale * (code - zero) - shift. A kernel walks over the chunks; of each it loads the words of its rows, then
for every group of planes the scale, and for every plane the codes. All of it stays in registers.
Indices: `rows` (BLOCK_N,) of the weight, `lanes` 0..15 in a plane; masks are the caller's `rows < N`.
"""

# The arguments of kernels are pointers, blocks and constants of the compiler, for which Python has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl

from qlocal.kernels.triton.layout import Kind

# Decided once, when the kernels are: triton reads TRITON_INTERPRET where a function is decorated.
_IS_INTERPRETED: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)

# Said aloud because Triton 3.10 changes the default: a product and a sum may be one instruction, with one rounding.
COMPILER_OPTIONS = {"enable_fp_fusion": True}


def kind_constants(kind: Kind, group_size: int) -> dict[str, str | int | bool]:
    """Return what a kernel is compiled for on account of its weight, as its keyword arguments."""
    return {"KIND": kind.value, "GROUP_SIZE": group_size, "CHUNK": kind.chunk, "HAS_SHIFT": kind.has_shift}


@triton.jit
def load_words(codes_ptr, chunk, rows, row_mask, N):
    """Load a chunk of some rows, 16 words each: (BLOCK_N, 16) int32, in 16-byte loads."""
    lanes = tl.arange(0, 16)
    # A weight may hold more than 2^31 bytes, but not as many words.
    return tl.load(codes_ptr + (chunk * N + rows)[:, None] * 16 + lanes[None, :], mask=row_mask[:, None], other=0)


@triton.jit
def load_high(high_ptr, chunk, rows, row_mask, N):
    """Load the high bits of a chunk, or nothing for kinds without: (BLOCK_N, 16) int32."""
    if high_ptr is None:
        high = None
    else:
        lanes = tl.arange(0, 16)
        address = high_ptr + (chunk * N + rows)[:, None] * 16 + lanes[None, :]
        high = tl.load(address, mask=row_mask[:, None], other=0).to(tl.int32)
    return high


@triton.jit
def load_scale(
    scales_ptr, fields_ptr, chunk, rows, row_mask, N, GROUP: tl.constexpr, KIND: tl.constexpr, GROUP_SIZE: tl.constexpr
):
    """Load what group `GROUP` of a chunk shares: scale, zero, shift, each (BLOCK_N,) float32."""
    zero = tl.zeros_like(rows).to(tl.float32)
    shift = zero
    if KIND == "affine":
        group = chunk * (128 // GROUP_SIZE) + GROUP
        scale = tl.load(scales_ptr + group * N + rows, mask=row_mask, other=0).to(tl.float32)
        BYTES: tl.constexpr = 2 if GROUP_SIZE == 32 else 1
        pairs = tl.load(fields_ptr + (chunk * BYTES + GROUP // 2) * N + rows, mask=row_mask, other=0)
        zero = ((pairs >> (GROUP % 2 * 4)) & 15).to(tl.float32)
    elif KIND == "q4_0":
        scale = tl.load(scales_ptr + (chunk * 4 + GROUP) * N + rows, mask=row_mask, other=0).to(tl.float32)
        zero += 8
    elif KIND == "q8_0":
        scale = tl.load(scales_ptr + (chunk * 2 + GROUP) * N + rows, mask=row_mask, other=0).to(tl.float32)
        zero += 128
    elif KIND == "q6_k":
        block_scale = tl.load(scales_ptr + (chunk // 2) * N + rows, mask=row_mask, other=0).to(tl.float32)
        plane_scales = tl.load(fields_ptr + (chunk * 2 + GROUP // 4) * N + rows, mask=row_mask, other=0)
        # Up and down again: the shift to the right brings the sign along.
        scale = block_scale * ((plane_scales << (24 - GROUP % 4 * 8)) >> 24).to(tl.float32)
        zero += 32
    else:
        tl.static_assert(KIND == "q4_k" or KIND == "q5_k", "a kind that layout.py has not")
        block_ptr = scales_ptr + chunk // 2 * 2 * N + rows
        six_bit_scale, six_bit_min = _load_six_bit_pair(fields_ptr + chunk * 3 * N + rows, row_mask, N, GROUP)
        scale = tl.load(block_ptr, mask=row_mask, other=0).to(tl.float32) * six_bit_scale
        shift = tl.load(block_ptr + N, mask=row_mask, other=0).to(tl.float32) * six_bit_min
    return scale, zero, shift


@triton.jit
def _load_six_bit_pair(fields_ptr, row_mask, N, GROUP: tl.constexpr):
    """Load the six-bit scale and min of a Q4_K or Q5_K sub-block: two (BLOCK_N,) float32."""
    low_scales = tl.load(fields_ptr, mask=row_mask, other=0).to(tl.int32)
    low_mins = tl.load(fields_ptr + N, mask=row_mask, other=0).to(tl.int32)
    high_pairs = tl.load(fields_ptr + 2 * N, mask=row_mask, other=0).to(tl.int32)
    scale = ((low_scales >> (GROUP * 4)) & 15) | (((high_pairs >> (GROUP * 2)) & 3) << 4)
    least = ((low_mins >> (GROUP * 4)) & 15) | (((high_pairs >> (GROUP * 2 + 8)) & 3) << 4)
    return scale.to(tl.float32), least.to(tl.float32)


@triton.jit
def decode_plane(words, high, zero, PLANE: tl.constexpr, KIND: tl.constexpr):
    """Return code - zero of a plane, exactly: words (BLOCK_N, 16), zero (BLOCK_N,) -> (BLOCK_N, 16) float32.

    Converting integers is four to eight times slower than adding floats. So the code is set into the mantissa of a
    power of two whose last places are worth just that, and the power is subtracted together with the zero."""
    BITS: tl.constexpr = 8 if KIND == "q8_0" else 4
    HIGH_BITS: tl.constexpr = 1 if KIND == "q5_k" else 2 if KIND == "q6_k" else 0
    # A mantissa has 23 bits; the planes that do not fit there are moved down, all by one distance.
    FITTING: tl.constexpr = 23 // BITS
    DOWN: tl.constexpr = PLANE * BITS if HIGH_BITS > 0 else PLANE // FITTING * FITTING * BITS
    AT: tl.constexpr = PLANE * BITS - DOWN
    mantissa = (words >> DOWN) & (((1 << BITS) - 1) << AT)
    if HIGH_BITS > 0:
        mantissa |= ((high >> (PLANE * HIGH_BITS)) & ((1 << HIGH_BITS) - 1)) << 4
    return _from_mantissa(mantissa, zero, AT)


@triton.jit
def _from_mantissa(mantissa, zero, AT: tl.constexpr):
    """Return mantissa / 2^AT - zero as float32, for integers below 2^23."""
    EXPONENT: tl.constexpr = (127 + 23 - AT) << 23
    POWER: tl.constexpr = 1 << (23 - AT)
    return (mantissa | EXPONENT).to(tl.float32, bitcast=True) - (zero + POWER)[:, None]


@triton.jit
def load_activations(x_ptr, columns, tokens, M, K):
    """Load x (M, K) transposed, zeros outside of it: (columns, tokens)."""
    mask = (columns < K)[:, None] & (tokens < M)[None, :]
    return tl.load(x_ptr + tokens.to(tl.int64)[None, :] * K + columns[:, None], mask=mask, other=0)


@triton.jit
def dot(a, b, acc):
    """Add a @ b to acc: a float32 is rounded to the type of b; products are exact, sums float32."""
    a = a.to(b.dtype)
    if _IS_INTERPRETED:
        # The interpreter keeps bfloat16 as integers and would multiply those.
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")
