"""What every solver is given, and what it returns. A solver knows layers and tables; the mathematics is a method's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qlocal.formats import awq as awq_format
from qlocal.formats import gptq as gptq_format
from qlocal.formats.quantization_config import QuantizationConfig
from qlocal.models.base import Role, TensorSpec
from qlocal.weights import AffineWeight, DenseWeight
from quantize.calibration.recorder import Key, Recorder, Wanted, batches, gram_bytes
from quantize.layer_run import LayerRun
from quantize.methods import rtn
from quantize.methods.base import AffineSettings, Statistics
from quantize.recipe import Target
from quantize.source import PaddedSource

EFFECTIVE_ROWS = 1024
MIN_EXPERT_TOKENS = 32
"""An expert that saw fewer inputs is rounded: they say too little about its columns."""

OnLoss = Callable[[str, float], None]
Forward = Callable[[Recorder], None]
"""Runs a part of the layer over all samples, with the recorder as its observer."""

GRAM = Wanted(gram=True, means=False)
"""All that error feedback looks at."""

SHARING = {
    Role.Q: (Role.Q, Role.K, Role.V),
    Role.O: (Role.O,),
    Role.GATE: (Role.GATE, Role.UP),
    Role.DOWN: (Role.DOWN,),
}
"""The linears that read the input observed as the key."""


@dataclass(frozen=True)
class LayerTask:
    """One unit of work for one result.

    captured: statistics of the BF16 stream by key; empty without calibration. run: the layer with its inputs, or
    None. max_gram_bytes: how much memory matrices of inputs may take at once. learn: steps of descent in the end.
    device: where matrices are factored and weights are solved.
    """

    source: PaddedSource
    target: Target
    specs: list[TensorSpec]
    on_loss: OnLoss
    captured: dict[Key, Statistics] = field(default_factory=dict)
    run: LayerRun | None = None
    max_gram_bytes: int = 4 << 30
    learn: int = 0
    device: str = "cpu"

    def of_roles(self, *roles: Role) -> list[TensorSpec]:
        """Return the weights with one of these roles, in the table's order."""
        return [spec for spec in self.specs if spec.role in roles and not spec.is_bias]


@dataclass
class LayerResult:
    """The stored tensors of a unit by name, the loss of every linear, and what should be said."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def affine_settings(settings: QuantizationConfig) -> AffineSettings:
    """Return the method's view of a folder's settings. GPTQ keeps zero points above 0: a later conversion to
    version 1 then borrows nothing."""
    assert settings.group_size is not None, "the recipe has chosen one"
    return AffineSettings(settings.group_size, settings.symmetric, min_zero=1 if settings.method == "gptq" else 0)


def stored_linear(spec: TensorSpec, weight: AffineWeight, settings: QuantizationConfig) -> dict[str, Tensor]:
    """Return the stored parts of one quantized linear by full name."""
    parts = awq_format.encode(weight) if settings.method == "awq" else gptq_format.encode(weight, settings)
    return {f"{spec.module}.{name}": part for name, part in parts.items()}


def effective_weight(
    weight: AffineWeight, scale_K: Tensor | None = None, device: torch.device | str = "cpu"
) -> DenseWeight:
    """Return the values of a quantized weight in bf16, as the layer computes with them while others are solved.

    scale_K: the AWQ scale of its columns, taken out again since the layer's norms stay as they are. device: where they
    are wanted; codes are brought there, not values.
    """
    parts = []
    if scale_K is not None:
        scale_K = scale_K.to(device)
    g_idx = None if weight.g_idx is None else weight.g_idx.to(device)
    for start in range(0, len(weight.codes), EFFECTIVE_ROWS):
        rows = slice(start, start + EFFECTIVE_ROWS)
        codes, scales, zeros = (part[rows].to(device) for part in (weight.codes, weight.scales, weight.zero_points))
        part = AffineWeight(codes, scales, zeros, weight.group_size, g_idx)
        values = rtn.decode(part)
        parts.append((values if scale_K is None else values.div_(scale_K)).bfloat16())
    return DenseWeight(torch.cat(parts))


def record(
    task: LayerTask, wanted: dict[Key, Wanted], forward: Forward, *, at_once: bool = False
) -> Iterator[dict[Key, Statistics]]:
    """Yield the statistics of what is wanted, in batches whose matrices fit into memory, one forward a batch.

    at_once: in one batch, whatever it takes.
    """
    limit = task.max_gram_bytes if not at_once else sum(gram_bytes(task.source.config, k, w) for k, w in wanted.items())
    for batch in batches(task.source.config, wanted, limit):
        recorder = Recorder(task.source.config, batch, task.device)
        forward(recorder)
        yield recorder.finish()
