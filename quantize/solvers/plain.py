"""Plain rounding of a whole layer to AWQ or GPTQ: no inputs, no order. What the other solvers are compared with."""

from __future__ import annotations

from quantize.methods.rtn import quantize_rtn
from quantize.solvers.base import LayerResult, LayerTask, affine_settings, stored_linear


def solve(task: LayerTask) -> LayerResult:
    """Round every linear of the unit; everything else is stored in F16."""
    settings = task.target.settings
    assert settings is not None, "AWQ and GPTQ targets have settings"
    result = LayerResult()
    for spec in task.specs:
        if not spec.is_quantized:
            result.tensors[spec.name] = task.source.read_float16(spec.name)
            continue
        quantized = quantize_rtn(task.source.read_float32(spec.name), affine_settings(settings))
        result.tensors |= stored_linear(spec, quantized.weight, settings)
        result.losses[spec.module] = quantized.loss
        task.on_loss(spec.module, quantized.loss)
    return result
