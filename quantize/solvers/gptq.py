"""GPTQ for a whole layer: q/k/v, then o, then gate/up, then down, each after its quantized predecessors."""

from __future__ import annotations

from qlocal.models.base import Role, TensorSpec
from qlocal.weights import AffineWeight
from quantize.calibration.recorder import Key, Wanted, experts
from quantize.methods.base import Statistics
from quantize.methods.gptq import GptqSettings, GptqSolver
from quantize.methods.rtn import quantize_rtn
from quantize.options import DAMP
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

GRAM = Wanted(gram=True)


def solve(task: LayerTask) -> LayerResult:
    """Solve one decoder layer. The matrix of the inputs of q/k/v is taken out of `task.captured`."""
    return _GptqLayer(task).solve()


class _GptqLayer:
    def __init__(self, task: LayerTask) -> None:
        assert task.run is not None and task.target.settings is not None, "GPTQ is calibrated"
        self._task = task
        self._run = task.run
        self._stored = task.target.settings
        self._settings = GptqSettings(affine_settings(self._stored), desc_act=self._stored.desc_act, damp=DAMP)
        self._layer = task.run.load_layer()
        self._result = LayerResult()

    def solve(self) -> LayerResult:
        task, config = self._task, self._task.source.config
        for spec in task.specs:
            if not spec.is_quantized:
                self._result.tensors[spec.name] = task.source.read_float16(spec.name)
        self._solve(task.of_roles(Role.Q, Role.K, Role.V), task.captured[Role.Q, None])
        self._stage({(Role.O, None): GRAM}, lambda r: self._run.attention(self._layer, r, keep=False))
        self._run.attention(self._layer, None, keep=True)
        self._stage({(Role.GATE, e): GRAM for e in experts(config)}, lambda r: self._run.ffn(self._layer, r))
        self._stage({(Role.DOWN, e): GRAM for e in experts(config)}, lambda r: self._run.ffn(self._layer, r))
        return self._result

    def _stage(self, wanted: dict[Key, Wanted], forward: Forward) -> None:
        for stats in record(self._task, wanted, forward):
            for role, expert in list(stats):
                linears = [s for s in self._task.of_roles(*SHARING[role]) if s.expert == expert]
                self._solve(linears, stats.pop((role, expert)))

    def _solve(self, linears: list[TensorSpec], stats: Statistics) -> None:
        """Solve linears with one input: one factor serves them all."""
        if stats.tokens < MIN_EXPERT_TOKENS:
            self._round(linears, stats)
            return
        solver = GptqSolver(stats, self._settings)
        if solver.damp > self._settings.damp:
            names = ", ".join(spec.module for spec in linears)
            self._result.notes.append(f"{names}: damping raised to {solver.damp:.2f}.")
        for spec in linears:
            quantized = solver.quantize(self._task.source.read_float32(spec.name))
            self._keep(spec, quantized.weight, quantized.loss)

    def _round(self, linears: list[TensorSpec], stats: Statistics) -> None:
        for spec in linears:
            quantized = quantize_rtn(self._task.source.read_float32(spec.name), self._settings.affine)
            self._result.notes.append(f"{spec.module}: rounded, calibration gave it {stats.tokens} tokens.")
            self._keep(spec, quantized.weight, quantized.loss)

    def _keep(self, spec: TensorSpec, weight: AffineWeight, loss: float) -> None:
        self._layer.replace(spec.role, spec.expert, effective_weight(weight), bias_of(self._task, spec))
        self._result.tensors |= stored_linear(spec, weight, self._stored)
        self._result.losses[spec.module] = loss
        self._task.on_loss(spec.module, loss)
