"""The rotation of packed keys and values (`cache/packed.py`) inside a kernel."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotate(x, SIZE: tl.constexpr, LOG: tl.constexpr):
    """Multiply (SIZE,) float32 by the normalized Hadamard matrix; SIZE = 2^LOG.

    Every round adds and subtracts the halves and lays the results beside each other: so the bits of an index turn by
    one place, and after LOG rounds each was the first once, and all are where they were."""
    for _ in tl.static_range(LOG):
        first, second = tl.split(tl.permute(tl.reshape(x, (2, SIZE // 2)), (1, 0)))
        x = tl.reshape(tl.join(first + second, first - second), (SIZE,))
    return x * (SIZE**-0.5)
