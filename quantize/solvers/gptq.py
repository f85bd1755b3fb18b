"""GPTQ for a whole layer: one factor serves all linears with one input."""

from __future__ import annotations

from qlocal.models.base import Role
from quantize.calibration.recorder import Key, Wanted
from quantize.methods.base import Statistics
from quantize.methods.gptq import GptqSettings, GptqSolver
from quantize.methods.rtn import quantize_rtn
from quantize.options import DAMP
from quantize.solvers.base import MIN_EXPERT_TOKENS, LayerResult, LayerTask
from quantize.solvers.sequential import SequentialLayer

GRAM = Wanted(gram=True)


def solve(task: LayerTask) -> LayerResult:
    """Solve one decoder layer."""
    return _GptqLayer(task).solve()


class _GptqLayer(SequentialLayer):
    def wanted(self, role: Role) -> Wanted:
        return GRAM

    def solve_inputs(self, stats: dict[Key, Statistics]) -> None:
        for key, of_input in stats.items():
            self._solve(key, of_input)

    def _solve(self, key: Key, stats: Statistics) -> None:
        linears, source = self.linears_of(key), self.task.source
        if stats.tokens < MIN_EXPERT_TOKENS:
            for spec in linears:
                self.keep_rounded(spec, quantize_rtn(source.read_float32(spec.name), self.settings), stats)
            return
        assert self.task.target.settings is not None, "looked at when the layer was begun"
        solver = GptqSolver(stats, GptqSettings(self.settings, self.task.target.settings.desc_act, damp=DAMP))
        if solver.damp > DAMP:
            names = ", ".join(spec.module for spec in linears)
            self.result.notes.append(f"{names}: damping raised to {solver.damp:.2f}.")
        for spec in linears:
            solved = solver.quantize(source.read_float32(spec.name))
            self.keep(spec, solved.weight, solved.loss)
