"""The order of work in a layer whose linears see their quantized predecessors: q/k/v, o, gate/up, down."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from qlocal.models.base import Role, TensorSpec
from qlocal.weights import DenseWeight
from quantize.calibration.recorder import Key, Wanted, experts
from quantize.methods.base import Statistics
from quantize.methods.gptq import GptqSettings, GptqSolver
from quantize.options import DAMP, DAMP_OF_O
from quantize.solvers.base import (
    SHARING,
    Forward,
    LayerResult,
    LayerTask,
    record,
)


class SequentialLayer(ABC):
    """One decoder layer while it is solved. Subclasses say what they record of an input (`wanted`), solve the linears
    that read it (`solve_inputs`) and take each into the layer (`use`); `finished` makes tensors of what they kept.
    """

    experts_together = False
    """Whether the first linears of all experts are solved in one call: their inputs share one scale."""

    def __init__(self, task: LayerTask) -> None:
        assert task.run is not None, "layers that are solved in order have inputs"
        self.task = task
        self.result = LayerResult()
        self._run = task.run
        self._layer = task.run.load_layer()

    @abstractmethod
    def wanted(self, role: Role) -> Wanted:
        """Return what to record of the input observed as `role`."""

    @abstractmethod
    def solve_inputs(self, stats: dict[Key, Statistics]) -> None:
        """Solve every linear that reads these inputs. May use up the matrices of `stats`."""

    @abstractmethod
    def finished(self) -> LayerResult:
        """Return the result, complete."""

    def solve(self) -> LayerResult:
        """Solve the layer. The statistics of q/k/v's input are taken from `task.captured`."""
        run, layer, config = self._run, self._layer, self.task.source.config
        captured = self.task.captured[Role.Q, None].copy(self.task.device)  # other results need it too
        self.solve_inputs({(Role.Q, None): captured})
        self._stage([(Role.O, None)], lambda recorder: run.attention(layer, recorder))
        first, second = ([(role, expert) for expert in experts(config)] for role in (Role.GATE, Role.DOWN))
        self._stage(first, lambda recorder: run.ffn(layer, recorder), together=self.experts_together)
        self._stage(second, lambda recorder: run.ffn(layer, recorder))
        return self.finished()

    def linears_of(self, key: Key) -> list[TensorSpec]:
        """Return the linears that read the input observed as `key`."""
        role, expert = key
        return [spec for spec in self.task.of_roles(*SHARING[role]) if spec.expert == expert]

    def make_solver(
        self,
        linears: list[TensorSpec],
        stats: Statistics,
        group_sizes: tuple[int, ...],
        *,
        desc_act: bool = False,
    ) -> GptqSolver:
        """Return the solver of linears with one input; damping that had to rise is said."""
        settings = GptqSettings(group_sizes, DAMP_OF_O if linears[0].role is Role.O else DAMP, desc_act)
        solver = GptqSolver(stats, settings)
        if solver.damp > settings.damp:
            names = ", ".join(spec.module for spec in linears)
            self.result.notes.append(f"{names}: damping raised to {solver.damp:.2f}.")
        return solver

    def say_rounded(self, spec: TensorSpec, stats: Statistics) -> None:
        """Say that calibration saw too little of a linear's inputs to do more than round it."""
        self.result.notes.append(f"{spec.module}: rounded, calibration gave it {stats.tokens} tokens.")

    def use(self, spec: TensorSpec, weight: Callable[[], DenseWeight], loss: float) -> None:
        """Let the layer compute the next inputs with a solved weight, where there are any; keep its loss."""
        if spec.role is not Role.DOWN:
            self._layer.replace(spec.role, spec.expert, weight(), self.task.source.bias_of(spec))
        self.result.losses[spec.module] = loss
        self.task.on_loss(spec.module, loss)

    def _stage(self, keys: list[Key], forward: Forward, *, together: bool = False) -> None:
        wanted = {key: self.wanted(key[0]) for key in keys}
        for stats in record(self.task, wanted, forward, at_once=together):
            if together:
                self.solve_inputs(stats)
                continue
            for key in list(stats):
                self.solve_inputs({key: stats.pop(key)})
                if key[0] is Role.DOWN and key[1] is not None:
                    self._put_back(key[1])

    def _put_back(self, expert: int) -> None:
        """Let an expert whose linears are all solved read the file's map again: those of eight are gigabytes."""
        for spec in self.task.of_roles(*SHARING[Role.GATE]):
            if spec.expert == expert:
                weight = self.task.source.read(spec.name)
                self._layer.replace(spec.role, expert, weight, self.task.source.bias_of(spec))
