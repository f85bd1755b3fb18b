"""From a BF16 checkpoint to 4-bit results, one decoder layer at a time.

    open → plan → calibrate → for each layer: capture, solve every result, store, journal → head → assemble → place
         → gate

Whatever is finished is on the disk and in the journal; started again with the same arguments it goes on from there,
and the results are the same to the byte wherever it was interrupted.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch

import qlocal
from qlocal.formats.hf_checkpoint import HfCheckpoint
from qlocal.guard.client import Guard
from qlocal.layers.loader import load_embedding
from qlocal.layers.norm import rms_norm
from qlocal.models.base import Role
from qlocal.tokenizer.tokenizer import Tokenizer
from quantize.assemble import Assembly, tokenizer_metadata
from quantize.calibration.hidden_states import HiddenStates
from quantize.calibration.importance import Importance
from quantize.calibration.recorder import Key, Recorder, Wanted, experts
from quantize.calibration.windows import Windows, make_windows
from quantize.device import choose_device
from quantize.estimate import DEFAULT_GRAM_BYTES, check_disk, check_memory, estimate
from quantize.gate.streaming import Machine
from quantize.gate.texts import Material, Reading, read_material
from quantize.layer_run import LayerRun
from quantize.methods.base import Statistics
from quantize.options import Options
from quantize.placing import Placing, Staged
from quantize.recipe import HEAD_UNIT, Target, make_recipe, unit_specs
from quantize.report.display import Display
from quantize.report.files import read_report
from quantize.report.summary import Summary
from quantize.solvers import awq, gguf, gptq, plain
from quantize.solvers.base import GRAM, LayerResult, LayerTask
from quantize.source import PaddedSource
from quantize.source_hashes import SourceHashes
from quantize.state import Journal, Unit, locked, open_journal, source_fingerprint, whole_hashes
from quantize.verify import judge
from quantize.work_files import write_unit

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
            for unit in run.remaining():
                run.do_unit(unit)
            run.place()
        failures = run.gate() if options.verify else []
        run.tidy()
        return Outcome(run.reports(), failures)


@dataclass(frozen=True)
class Outcome:
    """What a call has come to. reports: of every result; failures: a sentence for every result that failed the gate."""

    reports: list[dict[str, Any]]
    failures: list[str]


@dataclass(frozen=True)
class _Captured:
    """What the BF16 stream showed of one unit, and the inputs of the next."""

    stats: dict[Key, Statistics]
    run: LayerRun | None = None
    outputs: HiddenStates | None = None


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
        self._journal: Journal
        self._device = choose_device(options.device)
        self._needed = estimate(self._recipe, options)
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
        if "gguf" in self._options.formats:
            tokenizer_metadata(self._source)
        if self._options.imatrix_file is not None:
            self._importance = Importance(self._options.imatrix_file, self._recipe)
        if self._options.needs_calibration:
            self._windows = self._tokenize()
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
        for note in self._all_notes():
            self._display.say(note)
        if self._journal.units:
            self._display.say(f"Continuing after {len(self._journal.units)} of {len(self._recipe.units)} units.")

    def remaining(self) -> list[str]:
        """Return the units that are not finished, in order."""
        return [unit for unit in self._recipe.units if unit not in self._journal.units]

    def do_unit(self, unit: str) -> None:
        """Capture, solve, store and journal one unit."""
        started = time.monotonic()
        units = self._recipe.units
        self._display.begin_unit(unit, units.index(unit), len(units))
        self._begin_hashing(unit)
        captured = self._capture(unit)
        result = Unit({}, {}, [], 0.0)
        parameters = 0
        for target in self._recipe.targets:
            solved = self._solve(unit, target, captured)
            result.files[target.name] = write_unit(self.folder, target.name, unit, solved.tensors)
            result.losses[target.name] = solved.losses
            result.notes += [f"{target.name}: {note}" for note in solved.notes]
            parameters += sum(
                math.prod(s.shape) for s in unit_specs(self._recipe.architecture, self._recipe.config, unit)
            )
        result.seconds = time.monotonic() - started
        self._finish_unit(unit, captured, result)
        self._display.end_unit(result.seconds, parameters)

    def place(self) -> None:
        """Assemble every result beside its place, and put it there."""
        assert self._hashes is not None, "resume comes first"
        self._journal.source_sha256 = self._hashes.finish()
        summary = Summary(
            self._name, self._options, self._recipe, self._journal, self._calibration_sentence(), self._all_notes()
        )
        assembly = Assembly(
            self._recipe, self._source, self._journal, self._name, self._options.shard_bytes, self._options.rtn
        )
        self._placing.put([_staged(target, assembly, summary) for target in self._recipe.targets])

    def gate(self) -> list[str]:
        """Hold the placed results against the source and write that into their reports; returns what failed."""
        started = time.monotonic()
        paths = [target.path for target in self._recipe.targets]
        self._display.say("Holding the result against its source (--no-verify leaves that out) ...")
        material = self._material or read_material(self._source, Reading())
        machine = Machine(self._device)
        verdicts = judge(self._source, paths, material, machine, self._options.limits, self._display.gate_layer)
        for verdict in verdicts:
            verdict.add_to_report(with_card=True)
        seconds = time.monotonic() - started
        quantizing = sum(report.get("seconds", 0.0) for report in self.reports()[:1])
        share = f", {100 * seconds / (seconds + quantizing):.0f} % of the whole" if quantizing else ""
        self._display.say(f"The gate took {seconds:.1f} s{share}.")
        return [verdict.sentence for verdict in verdicts if verdict.failures]

    def tidy(self) -> None:
        """Delete the work."""
        self._placing.tidy()

    def reports(self) -> list[dict[str, Any]]:
        """Return the reports that lie with the placed results."""
        return [report for t in self._recipe.targets if (report := read_report(t.path)) is not None]

    def _begin_hashing(self, unit: str) -> None:
        """Hash the files that this unit is read from, while it is worked on."""
        assert self._hashes is not None, "resume comes first"
        specs = unit_specs(self._recipe.architecture, self._source.config, unit)
        self._hashes.begin(sorted({self._source.file_of(spec.name) for spec in specs}))

    def _capture(self, unit: str) -> _Captured:
        """Run the BF16 layer over all samples: statistics that the results share, and the next layer's inputs."""
        if self._windows is None:
            return _Captured({})
        inputs = self._inputs(unit)
        if unit == HEAD_UNIT:
            return _Captured(self._capture_head(inputs))
        run = LayerRun(self._source, int(unit), inputs, self.folder / "between.tmp", self._device)
        outputs = HiddenStates(self.folder / "outputs.tmp", inputs.shape, create=True)
        recorder = Recorder(self._recipe.config, self._wanted())
        with torch.inference_mode():
            run.whole(run.load_layer(), outputs, recorder)
        return _Captured(recorder.finish(), run, outputs)

    def _capture_head(self, states: HiddenStates) -> dict[Key, Statistics]:
        """Return the statistics of the output head's inputs: the last residual stream, normalized."""
        stats = Statistics(self._recipe.config.hidden_size)
        norm = self._source.read_float32("model.norm.weight")
        for sample in range(len(states)):
            stats.add(rms_norm(states[sample], norm, self._recipe.config.rms_norm_eps))
        return {(Role.HEAD, None): stats}

    def _inputs(self, unit: str) -> HiddenStates:
        """Return the inputs of a unit: stored by the one before it, or the embedded windows."""
        assert self._windows is not None, "only calibrated runs have inputs"
        shape = (*self._windows.ids.shape, self._recipe.config.hidden_size)
        if self._journal.hidden is not None:
            return HiddenStates(self.folder / self._journal.hidden, shape)
        states = HiddenStates(self.folder / "hidden-0.tmp", shape, create=True)
        embedding = load_embedding(self._source, "cpu")
        for sample, ids in enumerate(self._windows.ids):
            states[sample] = embedding(ids)
        return states

    def _wanted(self) -> dict[Key, Wanted]:
        """Return what the BF16 stream is recorded for: importance everywhere, matrices for q/k/v alone."""
        config, formats = self._recipe.config, set(self._options.formats)
        wanted: dict[Key, Wanted] = {}
        if "gguf" in formats and self._options.measures_importance:
            for role in (Role.Q, Role.O, Role.GATE, Role.DOWN):
                in_experts = role in (Role.GATE, Role.DOWN)
                wanted |= {(role, expert): Wanted() for expert in (experts(config) if in_experts else (None,))}
        first = wanted.get((Role.Q, None), Wanted())
        if "awq" in formats:
            first |= awq.wanted_of(self._source, Role.Q)
        if "gptq" in formats:
            first |= GRAM
        if self._feeds_back():
            first |= GRAM
        return wanted | {(Role.Q, None): first}

    def _solve(self, unit: str, target: Target, captured: _Captured) -> LayerResult:
        specs = unit_specs(self._recipe.architecture, self._recipe.config, unit)
        task = LayerTask(
            self._source,
            target,
            specs,
            lambda module, loss: self._display.linear_done(target.name, module, loss),
            captured.stats,
            captured.run,
            DEFAULT_GRAM_BYTES,
        )
        with torch.inference_mode():
            if target.format == "gguf":
                importance = self._importance.of(specs) if self._importance else None
                return gguf.solve(task, plain=self._options.rtn, feedback=self._feeds_back(), importance=importance)
            if self._options.rtn or unit == HEAD_UNIT:
                return plain.solve(task)
            return awq.solve(task) if target.format == "awq" else gptq.solve(task)

    def _feeds_back(self) -> bool:
        """Whether GGUF layers are solved with error feedback."""
        wanted = "gguf" in self._options.formats and self._options.uses_hessian
        return wanted and gguf.can_feed_back()

    def _finish_unit(self, unit: str, captured: _Captured, result: Unit) -> None:
        """Publish the next layer's inputs, then the journal that names them; only then drop the old inputs."""
        before, hidden = self._journal.hidden, self._journal.hidden
        if captured.outputs is not None:
            hidden = f"hidden-{int(unit) + 1}.bin"
            captured.outputs.publish(self.folder / hidden)
        if captured.run is not None:
            captured.run.close()
        if self._hashes is not None:
            self._journal.source_sha256 = self._hashes.done()
        self._journal.finish(unit, result, hidden)
        if before not in (None, hidden):
            (self.folder / str(before)).unlink(missing_ok=True)
        (self.folder / "hidden-0.tmp").unlink(missing_ok=True)

    def _tokenize(self) -> Windows:
        config = self._recipe.config
        with Guard() as guard:
            tokenizer = Tokenizer.load(self._source.tokenizer(), guard)
            return make_windows(self._options.calibration, tokenizer, config.max_position_embeddings, config.vocab_size)

    def _fingerprint(self) -> dict[str, Any]:
        return {
            "source": source_fingerprint(self._source.files),
            "options": self._options.fingerprint(),
            "calibration": self._windows.sha256 if self._windows else None,
            "importance file": self._importance.sha256 if self._importance else None,
            "versions": {"qlocal": qlocal.__version__, "torch": torch.__version__},
            "error feedback into blocks": self._feeds_back(),
        }

    def _calibration_sentence(self) -> str:
        if self._windows is None and self._importance is not None:
            return "No calibration texts: the importance of columns was read from a file."
        if self._windows is None:
            return "No calibration: the weights alone were looked at."
        count, length = self._windows.ids.shape
        files = self._options.calibration.files
        what = ", ".join(path.name for path in files) if files else "the shipped texts"
        return f"Calibrated on {count} windows of {length} tokens of {what}."

    def _all_notes(self) -> tuple[str, ...]:
        notes = (*self._recipe.notes, *(self._windows.notes if self._windows else ()))
        if self._importance is not None:
            notes += (self._importance.sentence, *self._importance.notes)
        wanted = "gguf" in self._options.formats and self._options.uses_hessian
        return notes if not wanted or self._feeds_back() else (*notes, NO_FEEDBACK)


def _staged(target: Target, assembly: Assembly, summary: Summary) -> Staged:
    return Staged(target, lambda path: assembly.write(target, path), summary.to_json(target))
