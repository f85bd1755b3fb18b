"""The neutral weights: what every format is read into and every kernel computes on.

No torch at import, no files and no arithmetic here; `kernels/reference/` says what the values are.
N is the number of outputs, K of inputs; G = K / group_size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlocal.ggml_types import GgmlType

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class DenseWeight:
    """An unquantized tensor.

    data: (N, K) or (N,), bf16, f16 or f32; possibly a view of a mapped file, so never written to.
    row_map: (N,) int64 or None. Row n of the model's weight is row `row_map[n]` of `data`
    (GGUF stores the q and k of llama in another row order).
    """

    data: Tensor
    row_map: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)


@dataclass(frozen=True, eq=False)
class AffineWeight:
    """4-bit codes with a scale and a zero point a group (AWQ, GPTQ): w[n, k] = (code - zero) * scale.

    codes: (N, K/2) uint8; element k of a row is the low nibble of byte k // 2 when k is even, else the high one.
    scales: (N, G) f16 or bf16, as stored. zero_points: (N, G) uint8, 0..15.
    g_idx: (K,) int32, the group of every column, or None where it is k // group_size.
    """

    codes: Tensor
    scales: Tensor
    zero_points: Tensor
    group_size: int
    g_idx: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return (self.codes.shape[0], self.codes.shape[1] * 2)


@dataclass(frozen=True, eq=False)
class BlockWeight:
    """Rows of GGML blocks, exactly as they lie in the file.

    blocks: (N, row_bytes) uint8, possibly a view of the mapped file. row_map: as in DenseWeight.
    """

    blocks: Tensor
    ggml_type: GgmlType
    columns: int
    row_map: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return (self.blocks.shape[0], self.columns)


Weight = DenseWeight | AffineWeight | BlockWeight
