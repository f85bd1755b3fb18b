"""Solving one unit of work for every result, wherever its captured inputs are brought to.

A `Job` is all that differs from unit to unit. It travels between processes; files go by name, in the work folder.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from qlocal.models.base import Role
from quantize.calibration.hidden_states import HiddenStates
from quantize.calibration.recorder import Key, Wanted, all_inputs
from quantize.estimate import DEFAULT_GRAM_BYTES
from quantize.layer_run import LayerRun
from quantize.methods.base import Statistics
from quantize.methods.feedback import can_solve_blocks
from quantize.options import Options
from quantize.recipe import HEAD_UNIT, Recipe, Target, unit_specs
from quantize.solvers import folder, gguf, head, plain
from quantize.solvers.base import GRAM, LayerResult, LayerTask
from quantize.source import PaddedSource
from quantize.state import Unit
from quantize.work_files import write_unit

OnLoss = Callable[[str, str, float], None]
"""Told of every linear that is done: target, module, loss."""


@dataclass(frozen=True)
class LayerInputs:
    """The inputs (S, L, D) of a layer, in a file of the work folder. mean_squares: (S, L) f32 by role, as LayerRun has
    taken them."""

    file: str
    shape: tuple[int, int, int]
    mean_squares: dict[Role, Tensor]


@dataclass(frozen=True)
class Job:
    """A unit whose inputs are captured. stats: what the results share; empty without calibration. inputs: of a decoder
    layer. importance: (K,) f32 by tensor name, where it was read from a file. seconds: how long capturing took."""

    unit: str
    stats: dict[Key, Statistics] = field(default_factory=dict)
    inputs: LayerInputs | None = None
    importance: dict[str, Tensor] | None = None
    seconds: float = 0.0


class UnitSolver:
    """Solves jobs of one run and writes their files to `folder`."""

    def __init__(self, source: PaddedSource, recipe: Recipe, options: Options, folder: Path, device: str) -> None:
        self._source = source
        self._recipe = recipe
        self._options = options
        self._folder = folder
        self._device = device

    def solve(self, job: Job, on_loss: OnLoss) -> Unit:
        """Solve a unit for every result; what is returned names files that are whole."""
        started = time.monotonic()
        result = Unit({}, {}, [], 0.0)
        run = self._layer_run(job)
        try:
            for target in self._recipe.targets:
                solved = self._solve(job, run, target, on_loss)
                result.files[target.name] = write_unit(self._folder, target.name, job.unit, solved.tensors)
                result.losses[target.name] = solved.losses
                result.notes += [f"{target.name}: {note}" for note in solved.notes]
        finally:
            if run is not None:
                run.close()
        result.seconds = job.seconds + time.monotonic() - started
        return result

    def _layer_run(self, job: Job) -> LayerRun | None:
        if job.inputs is None:
            return None
        inputs = HiddenStates(self._folder / job.inputs.file, job.inputs.shape)
        scratch = self._folder / f"attended-{uuid.uuid4().hex}.tmp"  # another worker may have the same unit, given up
        return LayerRun(self._source, int(job.unit), inputs, scratch, self._device, job.inputs.mean_squares)

    def _solve(self, job: Job, run: LayerRun | None, target: Target, on_loss: OnLoss) -> LayerResult:
        task = LayerTask(
            self._source,
            target,
            unit_specs(self._recipe.architecture, self._recipe.config_of(target), job.unit),
            lambda module, loss: on_loss(target.name, module, loss),
            job.stats,
            run,
            DEFAULT_GRAM_BYTES,
            self._options.learn,
            self._device,
        )
        with torch.inference_mode():
            if target.format == "gguf":
                importance = job.importance
                if importance is None and not self._options.measures_importance:
                    importance = {}  # what was recorded for another result does not count
                feedback = feeds_back(self._options)
                return gguf.solve(task, plain=self._options.rtn, feedback=feedback, importance=importance)
            if job.unit == HEAD_UNIT:
                return head.solve(task)
            if self._options.rtn:
                return plain.solve(task)
            return folder.solve(task)


def feeds_back(options: Options) -> bool:
    """Whether GGUF layers are solved with error feedback."""
    return options.uses_hessian and can_solve_blocks()


def wanted_of_stream(source: PaddedSource, options: Options) -> dict[Key, Wanted]:
    """Return what the BF16 stream is recorded for: importance everywhere, matrices for q/k/v alone."""
    formats = set(options.formats)
    wanted: dict[Key, Wanted] = {}
    if "gguf" in formats and options.measures_importance:
        wanted = dict.fromkeys(all_inputs(source.config), Wanted())
    first = wanted.get((Role.Q, None), Wanted())
    if formats & {"awq", "gptq"} or feeds_back(options):
        first |= GRAM
    return wanted | {(Role.Q, None): first}


def wanted_of_head(options: Options) -> Wanted:
    """Return what is recorded of the head's inputs: importance for GGUF, the matrix where AWQ or GPTQ solve it."""
    return Wanted(gram=options.quantize_head, means=options.measures_importance and "gguf" in options.formats)
