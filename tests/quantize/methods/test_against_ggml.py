"""Our blocks against those of llama.cpp's own library: the weighted squared error is never higher in the mean.

QLOCAL_LLAMA_BIN names the folder of a llama.cpp build with libggml-base.so (`docs/architecture.md`).
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from qlocal.ggml_types import LAYOUTS, GgmlType
from qlocal.kernels.quantize_blocks import BLOCK_TYPES
from qlocal.kernels.reference import dequantize
from qlocal.weights import BlockWeight
from quantize.methods.ggml import quantize_ggml
from tests.real_models import real_model

pytestmark = pytest.mark.real

ROWS, COLUMNS = 256, 4864
TYPES = sorted(BLOCK_TYPES)
SEARCHED_BY_US_ALONE = {GgmlType.Q4_0, GgmlType.Q4_1, GgmlType.Q5_0, GgmlType.Q5_1}
"""What llama.cpp only rounds when it has no importance matrix."""


@pytest.fixture(scope="module")
def ggml_library() -> ctypes.CDLL:
    folder = os.environ.get("QLOCAL_LLAMA_BIN")
    if not folder:
        pytest.skip("needs QLOCAL_LLAMA_BIN, the folder of a llama.cpp build with libggml-base.so")
    library = ctypes.CDLL(str(Path(folder) / "libggml-base.so"))
    i64, pointer = ctypes.c_int64, ctypes.c_void_p
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, i64, i64, i64, pointer]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def theirs(library: ctypes.CDLL, w_NK: Tensor, ggml_type: GgmlType, importance_K: Tensor | None) -> BlockWeight:
    layout = LAYOUTS[ggml_type]
    blocks = torch.empty((len(w_NK), w_NK.shape[1] // layout.block_size * layout.block_bytes), dtype=torch.uint8)
    importance = None if importance_K is None else importance_K.data_ptr()
    written = library.ggml_quantize_chunk(
        int(ggml_type), w_NK.data_ptr(), blocks.data_ptr(), 0, *w_NK.shape, importance
    )
    assert written == blocks.numel()
    return BlockWeight(blocks, ggml_type, w_NK.shape[1])


def rows_of(kind: str) -> Tensor:
    """Return (ROWS, COLUMNS) f32: drawn, or of a real down projection."""
    generator = torch.Generator().manual_seed(11)
    if kind == "gaussian":
        return torch.randn(ROWS, COLUMNS, generator=generator)
    if kind == "heavy-tailed":  # Student's t with three degrees of freedom
        chi = torch.randn(3, ROWS, COLUMNS, generator=generator).square().mean(0)
        return torch.randn(ROWS, COLUMNS, generator=generator) / chi.sqrt()
    path = real_model("qwen2.5-coder-0.5b") / "model.safetensors"
    with safe_open(path, "pt") as file:
        rows: Tensor = file.get_slice("model.layers.7.mlp.down_proj.weight")[:ROWS].float()
    return rows


def mean_error(w_NK: Tensor, weight: BlockWeight, importance_K: Tensor | None) -> float:
    squares = (dequantize(weight) - w_NK).double().square()
    return float((squares if importance_K is None else squares * importance_K).mean())


@pytest.mark.parametrize("kind", ["gaussian", "heavy-tailed", "real"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("ggml_type", TYPES, ids=lambda t: t.name)
def test_our_error_is_never_higher(ggml_library: ctypes.CDLL, ggml_type: GgmlType, weighted: bool, kind: str) -> None:
    w_NK = rows_of(kind)
    importance = torch.rand(COLUMNS, generator=torch.Generator().manual_seed(12)).pow(4) + 1e-3 if weighted else None
    ours = mean_error(w_NK, quantize_ggml(w_NK, ggml_type, importance).weight, importance)
    peer = mean_error(w_NK, theirs(ggml_library, w_NK, ggml_type, importance), importance)
    print(f"\n{ggml_type.name} {kind}: ours / theirs {ours / peer:.4f}")
    assert ours <= peer
    if not weighted and ggml_type in SEARCHED_BY_US_ALONE:
        assert ours < 0.97 * peer
