"""A whole layer of an AWQ or GPTQ folder: scales of columns searched and folded into whoever makes the input, then
rounding with error feedback. One factor serves all linears with one input.

A scale over `down`'s input divides the rows of `up`, which is quantized by then: dividing a row divides its scales,
and its codes stay.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlocal.errors import FormatError
from qlocal.models.base import Role, ScaleFold, TensorSpec
from qlocal.weights import AffineWeight
from quantize.calibration.recorder import Key, Wanted
from quantize.methods import column_scales
from quantize.methods.base import Quantized, Statistics
from quantize.methods.column_scales import Consumer
from quantize.methods.gptq import GptqSolver
from quantize.methods.grids import AffineGrid
from quantize.solvers.base import (
    GRAM,
    MIN_EXPERT_TOKENS,
    LayerResult,
    LayerTask,
    affine_settings,
    effective_weight,
    stored_linear,
)
from quantize.solvers.learning import learn
from quantize.solvers.sequential import SequentialLayer
from quantize.source import MAX_F16


def solve(task: LayerTask) -> LayerResult:
    """Solve one decoder layer; norms, biases and the router come out with the scales folded in."""
    return _FolderLayer(task).solve()


class _FolderLayer(SequentialLayer):
    """`dense` holds what stays unquantized, in f32, `weights` what is done, both by tensor name."""

    experts_together = True

    def __init__(self, task: LayerTask) -> None:
        super().__init__(task)
        assert task.target.settings is not None, "folders have settings"
        self.stored = task.target.settings
        self.grid = AffineGrid(affine_settings(self.stored))
        self.weights: dict[str, AffineWeight] = {}
        self.dense = {s.name: task.source.read_float32(s.name) for s in task.specs if not s.is_quantized}
        layer = task.specs[0].layer
        assert layer is not None, "the unit beside the layers holds no linears to solve"
        folds = task.source.architecture.scale_folds(task.source.config, layer)
        self._fold_of = {name: fold for fold in folds for name in fold.consumers}

    def wanted(self, role: Role) -> Wanted:
        return GRAM

    def solve_inputs(self, stats: dict[Key, Statistics]) -> None:
        """Solve the linears that read these inputs, which one scale serves together."""
        solvers: dict[Key, GptqSolver] = {}
        for key, of_input in stats.items():
            if of_input.tokens >= MIN_EXPERT_TOKENS:
                desc_act = self.stored.desc_act
                solvers[key] = self.make_solver(self.linears_of(key), of_input, (self.grid.columns,), desc_act=desc_act)
        fold = self._fold_of.get(self.linears_of(next(iter(stats)))[0].name)
        scale_K = self._search(solvers, fold) if solvers and fold is not None else None
        for key, of_input in stats.items():
            solver = solvers.pop(key, None)
            for spec in self.linears_of(key):
                self.keep(spec, self._solve(spec, of_input, solver, scale_K), scale_K)
        if fold is not None and scale_K is not None:
            self._fold(fold, scale_K)

    def _search(self, solvers: dict[Key, GptqSolver], fold: ScaleFold) -> Tensor | None:
        consumers = []
        for key, solver in solvers.items():
            for spec in self.linears_of(key):
                rows = column_scales.sampled_rows(self.task.source.read(spec.name).data)
                consumers.append(Consumer(rows.float(), solver.weights_K))
        scale_K = column_scales.search_scale(consumers, self.grid.settings)
        if not self._fits_float16(fold, scale_K):
            self.result.notes.append(f"{fold.producer}: takes no scale, float16 cannot hold the result.")
            return None
        for solver in solvers.values():
            solver.scale(scale_K)
        return scale_K

    def _fits_float16(self, fold: ScaleFold, scale_K: Tensor) -> bool:
        touched = [self.dense[name] * scale_K for name in fold.consumers if name in self.dense]  # a mixture's router
        if fold.producer in self.dense:
            touched.append(self.dense[fold.producer] / scale_K)
        elif fold.producer in self.weights:
            touched.append(self.weights[fold.producer].scales.float() / scale_K[:, None])
        return all(float(values.abs().max()) <= MAX_F16 for values in touched)

    def _solve(
        self, spec: TensorSpec, stats: Statistics, solver: GptqSolver | None, scale_K: Tensor | None
    ) -> Quantized[AffineWeight]:
        weight = self.task.source.read_float32(spec.name)
        if solver is not None:
            return solver.quantize(weight, self.grid)
        self.say_rounded(spec, stats)
        return column_scales.round_scaled(weight, scale_K, self.grid.settings)

    def _fold(self, fold: ScaleFold, scale_K: Tensor) -> None:
        """Divide the producer by the scale, with its bias; multiply consumers that are not quantized."""
        if fold.producer in self.dense:
            self.dense[fold.producer] /= scale_K
        else:
            self.weights[fold.producer] = column_scales.divide_rows(self.weights[fold.producer], scale_K)
            bias = fold.producer.removesuffix(".weight") + ".bias"
            if bias in self.dense:
                self.dense[bias] /= scale_K
        for name in fold.consumers:
            if name in self.dense:
                self.dense[name] *= scale_K

    def keep(self, spec: TensorSpec, quantized: Quantized[AffineWeight], scale_K: Tensor | None = None) -> None:
        """Take a solved linear into the result and into the layer.

        scale_K: the scale its columns were multiplied by, which the layer's own norms do not divide by.
        """
        self.weights[spec.name] = quantized.weight
        self.use(spec, lambda: effective_weight(quantized.weight, scale_K, self.task.device), quantized.loss)

    def finished(self) -> LayerResult:
        if self.task.learn:
            del self._layer  # what learns stands in its place
            self.weights, note = learn(self.task, self._run, self.weights, self.dense)
            self.result.notes.append(note)
        for spec in self.task.specs:
            if spec.name in self.weights:
                self.result.tensors |= stored_linear(spec, self.weights[spec.name], self.stored)
                continue
            values = self.dense[spec.name].half()
            if not torch.isfinite(values).all():
                raise FormatError(
                    f"{spec.name}: float16 cannot hold its values, in which AWQ and GPTQ store them",
                    hint="Choose GGUF, which keeps norms and biases in float32.",
                )
            self.result.tensors[spec.name] = values
        return self.result
