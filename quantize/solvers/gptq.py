"""GPTQ for a whole layer: one factor serves all linears with one input."""

from __future__ import annotations

from qlocal.models.base import Role
from quantize.calibration.recorder import Key, Wanted
from quantize.methods.base import Statistics
from quantize.methods.rtn import quantize_rtn
from quantize.solvers.base import GRAM, MIN_EXPERT_TOKENS, LayerResult, LayerTask
from quantize.solvers.sequential import FolderLayer


def solve(task: LayerTask) -> LayerResult:
    """Solve one decoder layer."""
    return _GptqLayer(task).solve()


class _GptqLayer(FolderLayer):
    def wanted(self, role: Role) -> Wanted:
        return GRAM

    def solve_inputs(self, stats: dict[Key, Statistics]) -> None:
        for key, of_input in stats.items():
            self._solve(key, of_input)

    def _solve(self, key: Key, stats: Statistics) -> None:
        linears, source = self.linears_of(key), self.task.source
        if stats.tokens < MIN_EXPERT_TOKENS:
            for spec in linears:
                self.say_rounded(spec, stats)
                self.keep(spec, quantize_rtn(source.read_float32(spec.name), self.grid.settings))
            return
        solver = self.make_solver(linears, stats, (self.grid.columns,), desc_act=self.stored.desc_act)
        for spec in linears:
            self.keep(spec, solver.quantize(source.read_float32(spec.name), self.grid))
