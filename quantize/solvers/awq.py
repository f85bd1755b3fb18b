"""AWQ for a whole layer: scales searched and folded into whoever makes the input, stage by stage.

The stages are those of GPTQ, each with the inputs its quantized predecessors give. A scale over `down`'s input divides
the rows of `up`, which is quantized by then: dividing a row divides its scales, and its codes stay.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlocal.errors import FormatError
from qlocal.models.base import Role, ScaleFold, TensorSpec
from qlocal.weights import AffineWeight
from quantize.calibration.recorder import Key, Wanted, experts, input_width
from quantize.methods import awq
from quantize.methods.awq import Consumer
from quantize.methods.base import Statistics
from quantize.options import MAX_GRAM_COLUMNS
from quantize.solvers.base import (
    MIN_EXPERT_TOKENS,
    SHARING,
    Forward,
    LayerResult,
    LayerTask,
    affine_settings,
    bias_of,
    effective_weight,
    record,
    stored_linear,
)
from quantize.source import MAX_F16, PaddedSource

SAMPLES_PER_SEQUENCE = 64
UNCLIPPED = frozenset({Role.Q, Role.K})
"""Their outputs meet in a product before the softmax, where the large values that clipping gives up count most."""


def solve(task: LayerTask) -> LayerResult:
    """Solve one decoder layer; norms, biases and the router come out with the scales folded in."""
    return _AwqLayer(task).solve()


def wanted_of(source: PaddedSource, role: Role) -> Wanted:
    """Return what AWQ records of an input: the Gram matrix, or samples where that would be too large."""
    if input_width(source.config, role) <= MAX_GRAM_COLUMNS:
        return Wanted(gram=True)
    return Wanted(samples=SAMPLES_PER_SEQUENCE)


class _AwqLayer:
    def __init__(self, task: LayerTask) -> None:
        assert task.run is not None and task.target.settings is not None, "AWQ is calibrated"
        self._task = task
        self._run = task.run
        self._stored = task.target.settings
        self._settings = affine_settings(self._stored)
        self._layer = task.run.load_layer()
        self._result = LayerResult()
        self._weights: dict[str, AffineWeight] = {}
        self._dense = {s.name: task.source.read_float32(s.name) for s in task.specs if not s.is_quantized}
        layer = task.specs[0].layer
        assert layer is not None, "the unit beside the layers holds no linears to solve"
        folds = task.source.architecture.scale_folds(task.source.config, layer)
        self._fold_of = {name: fold for fold in folds for name in fold.consumers}

    def solve(self) -> LayerResult:
        task, source, run = self._task, self._task.source, self._run
        self._solve_inputs({(Role.Q, None): task.captured[Role.Q, None]})
        self._stage({(Role.O, None): wanted_of(source, Role.O)}, lambda r: run.attention(self._layer, r, keep=False))
        run.attention(self._layer, None, keep=True)
        # All experts share the input that is scaled, so they are searched together.
        together = {(Role.GATE, e): wanted_of(source, Role.GATE) for e in experts(source.config)}
        for stats in record(task, together, lambda r: run.ffn(self._layer, r), at_once=True):
            self._solve_inputs(stats)
        self._stage(
            {(Role.DOWN, e): wanted_of(source, Role.DOWN) for e in experts(source.config)},
            lambda r: run.ffn(self._layer, r),
        )
        return self._finished()

    def _stage(self, wanted: dict[Key, Wanted], forward: Forward) -> None:
        for stats in record(self._task, wanted, forward):
            for key, value in stats.items():
                self._solve_inputs({key: value})

    def _solve_inputs(self, stats: dict[Key, Statistics]) -> None:
        """Solve the linears that read these inputs, which one scale serves together."""
        linears = {
            spec: value
            for (role, expert), value in stats.items()
            for spec in self._task.of_roles(*SHARING[role])
            if spec.expert == expert
        }
        fold = self._fold_of.get(next(iter(linears)).name)
        scale_K = None if fold is None else self._search(linears, fold)
        for spec, value in linears.items():
            self._quantize(spec, value, scale_K)
        if fold is not None and scale_K is not None:
            self._fold(fold, scale_K)

    def _search(self, linears: dict[TensorSpec, Statistics], fold: ScaleFold) -> Tensor | None:
        consumers = []
        for spec, stats in linears.items():
            if stats.tokens >= MIN_EXPERT_TOKENS:
                rows = awq.sampled_rows(self._task.source.read(spec.name).data)
                consumers.append(Consumer(rows.float(), stats))
        if not consumers:
            return None
        scale_K = awq.search_scale(consumers, self._settings)
        if self._fits_float16(fold, scale_K):
            return scale_K
        self._result.notes.append(f"{fold.producer}: takes no scale, float16 cannot hold the result.")
        return None

    def _fits_float16(self, fold: ScaleFold, scale_K: Tensor) -> bool:
        touched = [
            self._dense[name] * scale_K for name in fold.consumers if name in self._dense
        ]  # the router of a mixture
        if fold.producer in self._dense:
            touched.append(self._dense[fold.producer] / scale_K)
        elif fold.producer in self._weights:
            touched.append(self._weights[fold.producer].scales.float() / scale_K[:, None])
        return all(float(values.abs().max()) <= MAX_F16 for values in touched)

    def _quantize(self, spec: TensorSpec, stats: Statistics, scale_K: Tensor | None) -> None:
        if stats.tokens < MIN_EXPERT_TOKENS:
            self._result.notes.append(f"{spec.module}: rounded, calibration gave it {stats.tokens} tokens.")
        clip = spec.role not in UNCLIPPED and stats.tokens >= MIN_EXPERT_TOKENS
        w_NK = self._task.source.read_float32(spec.name)
        quantized = awq.quantize_scaled(w_NK, stats, scale_K, self._settings, clip=clip)
        self._weights[spec.name] = quantized.weight
        weight = effective_weight(quantized.weight, scale_K)
        self._layer.replace(spec.role, spec.expert, weight, bias_of(self._task, spec))
        self._result.losses[spec.module] = quantized.loss
        self._task.on_loss(spec.module, quantized.loss)

    def _fold(self, fold: ScaleFold, scale_K: Tensor) -> None:
        """Divide the producer by the scale, with its bias; multiply consumers that are not quantized."""
        if fold.producer in self._dense:
            self._dense[fold.producer] /= scale_K
        else:
            self._weights[fold.producer] = awq.divide_rows(self._weights[fold.producer], scale_K)
            bias = fold.producer.removesuffix(".weight") + ".bias"
            if bias in self._dense:
                self._dense[bias] /= scale_K
        for name in fold.consumers:
            if name in self._dense:
                self._dense[name] *= scale_K

    def _finished(self) -> LayerResult:
        for spec in self._task.specs:
            if spec.name in self._weights:
                self._result.tensors |= stored_linear(spec, self._weights[spec.name], self._stored)
                continue
            values = self._dense[spec.name].half()
            if not torch.isfinite(values).all():
                raise FormatError(
                    f"{spec.name}: float16 cannot hold its values, in which AWQ stores them",
                    hint="Choose GGUF, which keeps norms and biases in float32.",
                )
            self._result.tensors[spec.name] = values
        return self._result
