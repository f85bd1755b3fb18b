"""GGUF for one unit: every tensor by its type, importance from the BF16 stream as llama.cpp collects it.

Linears are independent here: importance weighs columns and makes up for no error of another layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlocal.formats.gguf_rows import permute_rows, rows_to_store
from qlocal.ggml_types import FLOAT_TYPES, GgmlType
from qlocal.models.base import Role, TensorSpec
from quantize.calibration.recorder import INPUT_OF
from quantize.methods.ggml import quantize_ggml
from quantize.solvers.base import LayerResult, LayerTask

_FLOATS = {GgmlType.F32: torch.float32, GgmlType.F16: torch.float16, GgmlType.BF16: torch.bfloat16}


def solve(task: LayerTask, *, plain: bool) -> LayerResult:
    """Encode every tensor of the unit; experts of a layer are stacked. plain: rounding without searches."""
    assert task.target.types is not None, "GGUF targets have a type for every tensor"
    result = LayerResult()
    stacked: dict[str, list[Tensor]] = {}
    for spec in task.specs:
        ggml_type = task.target.types[spec.gguf_name].ggml_type
        if ggml_type in FLOAT_TYPES:
            data = rows_to_store(task.source.read(spec.name), spec).to(_FLOATS[ggml_type])
        else:
            data = _quantize(task, spec, ggml_type, result, plain)
        stacked.setdefault(spec.gguf_name, []).append(data)
    for name, parts in stacked.items():
        result.tensors[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
    return result


def _quantize(task: LayerTask, spec: TensorSpec, ggml_type: GgmlType, result: LayerResult, plain: bool) -> Tensor:
    w_NK = task.source.read(spec.name).data
    if spec.permuted_heads:
        w_NK = permute_rows(w_NK, spec.permuted_heads).contiguous()
    quantized = quantize_ggml(w_NK, ggml_type, _importance(task, spec), plain=plain)
    result.losses[spec.module] = quantized.loss
    task.on_loss(spec.module, quantized.loss)
    return quantized.weight.blocks


def _importance(task: LayerTask, spec: TensorSpec) -> Tensor | None:
    """Return mean x² of the inputs, or None where none were seen: an embedding, an expert never chosen."""
    is_tied_head = spec.role is Role.EMBEDDING and task.source.config.tie_word_embeddings
    role = Role.HEAD if is_tied_head or spec.role is Role.HEAD else INPUT_OF.get(spec.role)
    stats = None if role is None else task.captured.get((role, spec.expert))
    return stats.mean_square_K if stats is not None and stats.tokens else None
