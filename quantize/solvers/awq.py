"""AWQ for a whole layer: scales searched and folded into whoever makes the input, then rounding with feedback.

A scale over `down`'s input divides the rows of `up`, which is quantized by then: dividing a row divides its scales,
and its codes stay.
"""

from __future__ import annotations

from torch import Tensor

from qlocal.models.base import Role, ScaleFold, TensorSpec
from quantize.calibration.recorder import Key, Wanted, input_width
from quantize.methods import awq
from quantize.methods.awq import Consumer
from quantize.methods.base import Statistics
from quantize.options import MAX_SEARCH_COLUMNS
from quantize.solvers.base import MIN_EXPERT_TOKENS, LayerResult, LayerTask
from quantize.solvers.sequential import FolderLayer
from quantize.source import MAX_F16, PaddedSource

SAMPLES_PER_PASS = 64


def solve(task: LayerTask) -> LayerResult:
    """Solve one decoder layer; norms, biases and the router come out with the scales folded in."""
    return _AwqLayer(task).solve()


def wanted_of(source: PaddedSource, role: Role) -> Wanted:
    """Return what AWQ records of an input: the Gram matrix, and samples where a search by the matrix takes too long."""
    wide = input_width(source.config, role) > MAX_SEARCH_COLUMNS
    return Wanted(gram=True, samples=SAMPLES_PER_PASS if wide else 0)


class _AwqLayer(FolderLayer):
    experts_together = True

    def __init__(self, task: LayerTask) -> None:
        super().__init__(task)
        layer = task.specs[0].layer
        assert layer is not None, "the unit beside the layers holds no linears to solve"
        folds = task.source.architecture.scale_folds(task.source.config, layer)
        self._fold_of = {name: fold for fold in folds for name in fold.consumers}

    def wanted(self, role: Role) -> Wanted:
        return wanted_of(self.task.source, role)

    def solve_inputs(self, stats: dict[Key, Statistics]) -> None:
        """Solve the linears that read these inputs, which one scale serves together."""
        linears = {spec: of_input for key, of_input in stats.items() for spec in self.linears_of(key)}
        fold = self._fold_of.get(next(iter(linears)).name)
        scale_K = None if fold is None else self._search(linears, fold)
        for key, of_input in stats.items():
            self._solve(self.linears_of(key), of_input, scale_K)
        if fold is not None and scale_K is not None:
            self._fold(fold, scale_K)

    def _search(self, linears: dict[TensorSpec, Statistics], fold: ScaleFold) -> Tensor | None:
        consumers = []
        for spec, stats in linears.items():
            if stats.tokens >= MIN_EXPERT_TOKENS:
                rows = awq.sampled_rows(self.task.source.read(spec.name).data)
                consumers.append(Consumer(rows.float(), stats))
        if not consumers:
            return None
        scale_K = awq.search_scale(consumers, self.grid.settings)
        if self._fits_float16(fold, scale_K):
            return scale_K
        self.result.notes.append(f"{fold.producer}: takes no scale, float16 cannot hold the result.")
        return None

    def _fits_float16(self, fold: ScaleFold, scale_K: Tensor) -> bool:
        touched = [self.dense[name] * scale_K for name in fold.consumers if name in self.dense]  # a mixture's router
        if fold.producer in self.dense:
            touched.append(self.dense[fold.producer] / scale_K)
        elif fold.producer in self.weights:
            touched.append(self.weights[fold.producer].scales.float() / scale_K[:, None])
        return all(float(values.abs().max()) <= MAX_F16 for values in touched)

    def _solve(self, linears: list[TensorSpec], stats: Statistics, scale_K: Tensor | None) -> None:
        source = self.task.source
        if stats.tokens < MIN_EXPERT_TOKENS:
            for spec in linears:
                self.say_rounded(spec, stats)
                weight = source.read_float32(spec.name)
                self.keep(spec, awq.round_scaled(weight, stats, scale_K, self.grid.settings), scale_K)
            return
        solver = self.make_solver(linears, stats, (self.grid.columns,), scale_K=scale_K)
        for spec in linears:
            self.keep(spec, solver.quantize(source.read_float32(spec.name), self.grid), scale_K)

    def _fold(self, fold: ScaleFold, scale_K: Tensor) -> None:
        """Divide the producer by the scale, with its bias; multiply consumers that are not quantized."""
        if fold.producer in self.dense:
            self.dense[fold.producer] /= scale_K
        else:
            self.weights[fold.producer] = awq.divide_rows(self.weights[fold.producer], scale_K)
            bias = fold.producer.removesuffix(".weight") + ".bias"
            if bias in self.dense:
                self.dense[bias] /= scale_K
        for name in fold.consumers:
            if name in self.dense:
                self.dense[name] *= scale_K
