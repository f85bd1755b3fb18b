"""The order of work in a layer whose linears see their quantized predecessors: q/k/v, o, gate/up, down."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from qlocal.errors import FormatError
from qlocal.models.base import Role, TensorSpec
from qlocal.weights import AffineWeight
from quantize.calibration.recorder import Key, Wanted, experts
from quantize.methods.base import Quantized, Statistics
from quantize.solvers.base import (
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


class SequentialLayer(ABC):
    """One decoder layer of an AWQ or GPTQ result while it is solved.

    Subclasses say what they record of an input (`wanted`) and solve the linears that read it (`solve_inputs`), by
    `keep`. `dense` holds what stays unquantized, in f32, `weights` what is done, both by tensor name.
    """

    experts_together = False
    """Whether the first linears of all experts are solved in one call: their inputs share one scale."""

    def __init__(self, task: LayerTask) -> None:
        assert task.run is not None and task.target.settings is not None, "folders are calibrated or rounded plainly"
        self.task = task
        self.settings = affine_settings(task.target.settings)
        self.result = LayerResult()
        self.weights: dict[str, AffineWeight] = {}
        self.dense = {s.name: task.source.read_float32(s.name) for s in task.specs if not s.is_quantized}
        self._run = task.run
        self._layer = task.run.load_layer()

    @abstractmethod
    def wanted(self, role: Role) -> Wanted:
        """Return what to record of the input observed as `role`."""

    @abstractmethod
    def solve_inputs(self, stats: dict[Key, Statistics]) -> None:
        """Solve every linear that reads these inputs. May use up the matrices of `stats`."""

    def solve(self) -> LayerResult:
        """Return the stored tensors."""
        run, layer, config = self._run, self._layer, self.task.source.config
        self.solve_inputs({(Role.Q, None): self.task.captured[Role.Q, None].copy()})  # other results need it too
        self._stage([(Role.O, None)], lambda observe: run.attention(layer, observe, keep=False))
        run.attention(layer, None, keep=True)
        first, second = ([(role, expert) for expert in experts(config)] for role in (Role.GATE, Role.DOWN))
        self._stage(first, lambda observe: run.ffn(layer, observe), together=self.experts_together)
        self._stage(second, lambda observe: run.ffn(layer, observe))
        return self._finished()

    def linears_of(self, key: Key) -> list[TensorSpec]:
        """Return the linears that read the input observed as `key`."""
        role, expert = key
        return [spec for spec in self.task.of_roles(*SHARING[role]) if spec.expert == expert]

    def keep_rounded(
        self, spec: TensorSpec, rounded: Quantized[AffineWeight], stats: Statistics, scale_K: Tensor | None = None
    ) -> None:
        """Keep a linear whose inputs calibration hardly saw, and say so."""
        self.result.notes.append(f"{spec.module}: rounded, calibration gave it {stats.tokens} tokens.")
        self.keep(spec, rounded.weight, rounded.loss, scale_K)

    def keep(self, spec: TensorSpec, weight: AffineWeight, loss: float, scale_K: Tensor | None = None) -> None:
        """Take a solved linear into the result, and into the layer that the next inputs come from.

        scale_K: the scale its columns were multiplied by, which the layer's own norms do not divide by.
        """
        self.weights[spec.name] = weight
        self._layer.replace(spec.role, spec.expert, effective_weight(weight, scale_K), bias_of(self.task, spec))
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

    def _finished(self) -> LayerResult:
        stored = self.task.target.settings
        assert stored is not None, "looked at when the layer was begun"
        for spec in self.task.specs:
            if spec.name in self.weights:
                self.result.tensors |= stored_linear(spec, self.weights[spec.name], stored)
                continue
            values = self.dense[spec.name].half()
            if not torch.isfinite(values).all():
                raise FormatError(
                    f"{spec.name}: float16 cannot hold its values, in which AWQ and GPTQ store them",
                    hint="Choose GGUF, which keeps norms and biases in float32.",
                )
            self.result.tensors[spec.name] = values
        return self.result
