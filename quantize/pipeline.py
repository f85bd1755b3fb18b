"""From a BF16 checkpoint to 4-bit results, one decoder layer at a time.

    open → plan → calibrate → choose types (--target-size) → for each layer: capture, solve every result, store, journal
         → head → assemble → place → gate

Layers are captured in order, each from what the one before it made of the residual stream; they are solved by an
executor, here one after another, by a cluster in any order. Whatever is finished is on the disk and in the journal;
started again with the same arguments, with a cluster or without, it goes on from there, and the results are the same to
the byte wherever it was interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from qlocal.formats.hf_checkpoint import HfCheckpoint
from qlocal.layers.loader import FINAL_NORM, load_embedding
from qlocal.layers.norm import rms_norm
from qlocal.models.base import Role, TensorSpec
from quantize.arithmetic import arithmetic
from quantize.assemble import Assembly, tokenizer_metadata
from quantize.calibration.hidden_states import HiddenStates
from quantize.calibration.importance import Importance
from quantize.calibration.recorder import Key, Recorder
from quantize.calibration.windows import Windows, windows_of
from quantize.device import choose_device, passed_over
from quantize.estimate import check_disk, check_memory, estimate
from quantize.executors.base import Executor, solve_all
from quantize.executors.local import LocalExecutor
from quantize.executors.ray_cluster import RayExecutor, require_ray
from quantize.executors.worker import Site
from quantize.gate.texts import Material, Reading, read_material
from quantize.layer_run import LayerRun
from quantize.methods.base import Statistics
from quantize.options import Options
from quantize.outcome import Outcome, hold_against_source, reports_of
from quantize.placing import Placing, Staged
from quantize.recipe import HEAD_UNIT, Target, make_recipe, unit_specs
from quantize.report.display import Display, DoneUnit
from quantize.report.summary import Summary
from quantize.sensitivity import measure
from quantize.source import PaddedSource
from quantize.source_hashes import SourceHashes
from quantize.state import Journal, Unit, locked, open_journal, source_fingerprint, whole_hashes
from quantize.target_size import Sized, check_target_size, choose_for_size
from quantize.unit_solver import Job, LayerInputs, UnitSolver, feeds_back, wanted_of_head, wanted_of_stream

NO_FEEDBACK = "GGUF is made by importance alone: error feedback needs the native kernels (see qlocal doctor)."


def quantize(checkpoint: HfCheckpoint, name: str, options: Options, display: Display) -> Outcome:
    """Quantize an opened source to every result that `options` names, and hold them against it.

    Raises QLocalError for whatever the source, the texts, the disk or an unfinished run with other arguments cause; a
    result that fails the gate stays where it is, and the outcome says so.
    """
    run = _Run(checkpoint, name, options, display)
    is_placed = run.is_placed()
    if not is_placed:
        run.check()
    with locked(run.folder), run:
        if not is_placed:
            run.resume()
            run.choose_types()
            run.solve()
            run.place()
        failures = run.gate() if options.verify else []
        run.tidy()
        return Outcome(run.reports(), failures)


class _Run:
    """One call of `quantize`; the methods are its steps in order."""

    def __init__(self, checkpoint: HfCheckpoint, name: str, options: Options, display: Display) -> None:
        self._options = options
        self._display = display
        self._name = name
        self._recipe = make_recipe(checkpoint.architecture, checkpoint.config, options, name)
        self._source = PaddedSource(checkpoint, self._recipe.config)
        self.folder = options.work_folder / "work"
        self._placing = Placing(options.out, self._recipe.targets, self.folder, options.fingerprint())
        self._windows: Windows | None = None
        self._importance: Importance | None = None
        self._material: Material | None = None
        self._choice: Sized | None = None
        self._journal: Journal
        self._needed = estimate(self._recipe, options)
        self._device = choose_device(options.device, self._needed.card)
        self._hashes: SourceHashes | None = None

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self._hashes is not None:
            self._hashes.close()

    def is_placed(self) -> bool:
        """Whether an earlier call has placed its results, and was stopped in the gate or while tidying up."""
        return self._placing.is_done()

    def check(self) -> None:
        """Check everything that needs no weights, and tokenize the texts; nothing is written."""
        check_memory(self._needed, self._options)
        self._placing.check(self._options.overwrite)
        if self._options.cluster is not None:
            require_ray()
        if "gguf" in self._options.formats:
            tokenizer_metadata(self._source)
        check_target_size(self._recipe, self._source, self._name, self._options)
        if self._options.imatrix_file is not None:
            self._importance = Importance(self._options.imatrix_file, self._recipe)
        if self._options.needs_calibration:
            self._windows = windows_of(self._source, self._options.calibration)
        if self._options.verify:
            self._material = read_material(self._source, Reading())

    def resume(self) -> None:
        """Open the journal, where an earlier call may have left off, and look for room on the disk."""
        self._journal = open_journal(self.folder, self._fingerprint(), torch.get_num_threads())
        finished = sum(f.num_bytes for unit in self._journal.units.values() for f in unit.files.values())
        check_disk(self._needed, self.folder, self._options.out, finished)
        torch.set_num_threads(self._journal.threads)
        known = whole_hashes(self._journal.fingerprint["source"]) | self._journal.source_sha256
        self._hashes = SourceHashes(self._source.files, known)
        self._journal.save()
        self._journal.drop_leftovers()
        for note in self._all_notes():
            self._display.say(note)
        if passed_over(self._options.device, self._device):
            self._display.say(f"No card has {self._needed.card / 1e9:.1f} GB free: layers are run on the CPU.")
        if self._journal.units:
            self._display.say(f"Continuing after {len(self._journal.units)} of {len(self._recipe.units)} units.")

    def choose_types(self) -> None:
        """Choose the types of a file of --target-size, by measurement, unless an earlier call has."""
        if self._options.target_size is None:
            return
        if self._journal.choice is None:
            assert self._windows is not None, "--target-size is refused without calibration"
            scratch, on_layer = self.folder / "streams.tmp", self._display.measured_layer
            measured = measure(self._source, self._windows.ids, scratch, self._device, on_layer)
            size = self._options.target_size
            chosen = choose_for_size(self._recipe, self._source, self._name, size, measured)
            self._display.say(chosen.sentence)
            self._journal.choice = chosen.to_json()
            self._journal.save()
        self._choice = Sized.of_json(self._journal.choice)
        self._recipe = make_recipe(
            self._source.architecture, self._recipe.source_config, self._options, self._name, self._choice.types
        )

    def remaining(self) -> list[str]:
        """Return the units that are not finished, in order."""
        return [unit for unit in self._recipe.units if unit not in self._journal.units]

    def solve(self) -> None:
        """Capture the units that are not finished in order, and store and journal each as it is solved."""
        executor = self._executor()
        started, worked = time.monotonic(), 0.0
        try:
            for job, result in solve_all(self._jobs(), executor, self._display.say):
                self._finish_unit(job, result)
                worked += result.seconds
        finally:
            executor.close()
        if self._options.cluster is not None:
            seconds = time.monotonic() - started
            self._display.say(f"The cluster did {worked:.1f} s of work in {seconds:.1f} s.")

    def place(self) -> None:
        """Assemble every result beside its place, and put it there."""
        assert self._hashes is not None, "resume comes first"
        self._journal.source_sha256 = self._hashes.finish()
        self._journal.units = {unit: self._journal.units[unit] for unit in self._recipe.units}  # as told in reports
        summary = Summary(
            self._name, self._options, self._recipe, self._journal, self._calibration_sentence(), self._all_notes()
        )
        assembly = Assembly(
            self._recipe, self._source, self._journal, self._name, self._options.shard_bytes, self._options.rtn
        )
        self._placing.put([_staged(target, assembly, summary) for target in self._recipe.targets])

    def gate(self) -> list[str]:
        """Hold the placed results against the source and write that into their reports; returns what failed."""
        options, targets = self._options, self._recipe.targets
        return hold_against_source(self._source, targets, self._material, self._device, options.limits, self._display)

    def tidy(self) -> None:
        """Delete the work."""
        self._placing.tidy()

    def reports(self) -> list[dict[str, Any]]:
        """Return the reports that lie with the placed results."""
        return reports_of(self._recipe.targets)

    def _begin_hashing(self, unit: str) -> None:
        """Hash the files that this unit is read from, while it is worked on."""
        assert self._hashes is not None, "resume comes first"
        specs = unit_specs(self._recipe.architecture, self._source.config, unit)
        self._hashes.begin(sorted({self._source.file_of(spec.name) for spec in specs}))

    def _ask_ahead(self, unit: str) -> None:
        """Have the disk read the weights of the unit after this one, while this one is worked on."""
        following = self._recipe.units[self._recipe.units.index(unit) + 1 :][:1]
        for name in (spec.name for after in following for spec in self._specs(after)):
            if name in self._source.tensors:
                self._source.will_read(name)

    def _executor(self) -> Executor:
        if self._options.cluster is None:
            solver = UnitSolver(self._source, self._recipe, self._options, self.folder, self._device)
            return LocalExecutor(solver, self._display.linear_done)
        site = Site(
            self._source.path.resolve(),
            self._name,
            self._options,
            self.folder.resolve(),
            self._device,
            self._journal.threads,
            tuple(self._journal.fingerprint["arithmetic"].items()),
            None if self._choice is None else tuple(self._choice.types.items()),
        )
        return RayExecutor(self._options.cluster, site, self._display.say)

    def _jobs(self) -> Iterator[Job]:
        """Capture every unit that is not finished, when it is asked for."""
        for unit in self.remaining():
            started = time.monotonic()
            self._display.begin_unit(unit)
            self._begin_hashing(unit)
            self._ask_ahead(unit)
            job = self._capture(unit)
            yield replace(job, seconds=time.monotonic() - started)

    def _capture(self, unit: str) -> Job:
        """Run the BF16 layer over all samples: statistics that the results share, and the next layer's inputs."""
        importance = self._importance.of(self._specs(unit)) if self._importance else None
        if self._windows is None:
            return Job(unit, importance=importance)
        inputs = self._inputs(unit)
        if unit == HEAD_UNIT:
            return Job(unit, self._capture_head(inputs), importance=importance)
        run = LayerRun(self._source, int(unit), inputs, self.folder / "attended.tmp", self._device)
        outputs = HiddenStates(self.folder / "outputs.tmp", inputs.shape, create=True)
        recorder = Recorder(self._recipe.config, wanted_of_stream(self._source, self._options), self._device)
        with torch.inference_mode():
            run.whole(run.load_layer(), outputs, recorder)
        self._publish(outputs, self._recipe.units.index(unit) + 1)
        layer = LayerInputs(inputs.path.name, inputs.shape, run.mean_squares)
        return Job(unit, recorder.finish(), layer, importance)

    def _capture_head(self, states: HiddenStates) -> dict[Key, Statistics]:
        """Return the statistics of the output head's inputs: the last residual stream, normalized."""
        config, wanted = self._recipe.config, wanted_of_head(self._options)
        if not (wanted.gram or wanted.means):
            return {}
        stats = Statistics(config.hidden_size, gram=wanted.gram, means=wanted.means, device=self._device)
        norm = self._source.read_float32(FINAL_NORM).to(self._device)
        for sample in range(len(states)):
            stats.add(rms_norm(states[sample].to(self._device), norm, config.rms_norm_eps))
        stats.finish()
        return {(Role.HEAD, None): stats}

    def _inputs(self, unit: str) -> HiddenStates:
        """Return the inputs of a unit: what capturing the one before it has left, or the embedded windows."""
        assert self._windows is not None, "only calibrated runs have inputs"
        shape = (*self._windows.ids.shape, self._recipe.config.hidden_size)
        index = self._recipe.units.index(unit)
        if _hidden(index) in self._journal.hidden:
            return HiddenStates(self.folder / _hidden(index), shape)
        assert index == 0, "units are captured in order, and the inputs of unfinished ones are kept"
        states = HiddenStates(self.folder / "embedded.tmp", shape, create=True)
        embedding = load_embedding(self._source, "cpu")
        for sample, ids in enumerate(self._windows.ids):
            states[sample] = embedding(ids)
        self._publish(states, index)
        return states

    def _publish(self, states: HiddenStates, index: int) -> None:
        """Keep the inputs of unit `index`, unless an interrupted run has captured them before."""
        if _hidden(index) in self._journal.hidden or self._recipe.units[index] in self._journal.units:
            states.remove()
            return
        states.publish(self.folder / _hidden(index))
        self._journal.add_hidden(_hidden(index))

    def _finish_unit(self, job: Job, result: Unit) -> None:
        """Journal a unit whose files are written."""
        assert self._hashes is not None, "resume comes first"
        self._journal.source_sha256 = self._hashes.done()
        units = self._recipe.units
        self._journal.finish(job.unit, result, _hidden(units.index(job.unit)))
        parameters = len(self._recipe.targets) * sum(math.prod(spec.shape) for spec in self._specs(job.unit))
        num_done = len(self._journal.units)
        self._display.end_unit(DoneUnit(job.unit, num_done, len(units), result.losses, result.seconds, parameters))

    def _specs(self, unit: str) -> list[TensorSpec]:
        return unit_specs(self._recipe.architecture, self._recipe.config, unit)

    def _fingerprint(self) -> dict[str, Any]:
        return {
            "source": source_fingerprint(self._source.files),
            "options": self._options.fingerprint(),
            "calibration": self._windows.sha256 if self._windows else None,
            "importance file": self._importance.sha256 if self._importance else None,
            "arithmetic": arithmetic(self._device),
            "error feedback into blocks": feeds_back(self._options),
        }

    def _calibration_sentence(self) -> str:
        if self._windows is None and self._importance is not None:
            return "No calibration texts: the importance of columns was read from a file."
        if self._windows is None:
            return "No calibration: the weights alone were looked at."
        return self._windows.sentence

    def _all_notes(self) -> tuple[str, ...]:
        notes = (*self._recipe.notes, *(self._windows.notes if self._windows else ()))
        if self._choice is not None:
            notes += (self._choice.sentence,)
        if self._importance is not None:
            notes += (self._importance.sentence, *self._importance.notes)
        is_left_out = self._options.uses_hessian and not feeds_back(self._options)
        return (*notes, NO_FEEDBACK) if is_left_out else notes


def _hidden(index: int) -> str:
    """Return the file with the inputs of unit `index`."""
    return f"hidden-{index}.bin"


def _staged(target: Target, assembly: Assembly, summary: Summary) -> Staged:
    return Staged(target, lambda path: assembly.write(target, path), summary.to_json(target))
