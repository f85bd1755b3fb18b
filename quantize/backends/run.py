"""From a BF16 checkpoint to results of another project's quantizer.

    check → windows → for each format: ask the peer, copy the tokenizer, look at what it made → place → gate

The peer gets our calibration windows and arguments and writes a folder beside the result; from there on everything is
as for our own: placed in one step, reported, held against its source. A peer cannot continue what was interrupted.
"""

from __future__ import annotations

import functools
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlocal.errors import EngineError, QLocalError, ResumeError, UsageError
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.formats.hf_checkpoint import HfCheckpoint
from qlocal.formats.quantization_config import QuantizationConfig
from quantize.assemble import copy_tokenizer
from quantize.backends.base import BACKENDS
from quantize.backends.interpreter import environment, find
from quantize.calibration.windows import Windows, windows_of
from quantize.device import choose_device
from quantize.estimate import Estimate, check_disk
from quantize.gate.texts import Material, Reading, read_material
from quantize.options import Options
from quantize.outcome import Outcome, hold_against_source, reports_of
from quantize.placing import Placing, Staged
from quantize.recipe import Recipe, Target, make_recipe, padded_config
from quantize.report.display import Display
from quantize.report.summary import scheme, sizes
from quantize.source_hashes import SourceHashes
from quantize.state import FILE_NAME, disk_error, locked, sync_folder

BEGINS_ANEW = "the same command begins anew, for a backend keeps nothing of what it had done"


def quantize(checkpoint: HfCheckpoint, name: str, options: Options, display: Display) -> Outcome:
    """Have the backend of `options` quantize an opened source to its formats, and hold the results against it.

    Raises QLocalError for whatever the interpreter, the source, the texts or the disk cause, and when the peer fails; a
    result that fails the gate stays where it is, and the outcome says so.
    """
    run = _Run(checkpoint, name, options, display)
    is_placed = run.is_placed()
    if not is_placed:
        run.check()
    with locked(run.folder):
        if not is_placed:
            run.place(run.ask())
        failures = run.gate() if options.verify else []
        run.tidy()
        return Outcome(reports_of(run.targets), failures)


class _Run:
    """One call; the methods are its steps in order."""

    def __init__(self, checkpoint: HfCheckpoint, name: str, options: Options, display: Display) -> None:
        self._source = checkpoint
        self._name = name
        self._options = options
        self._display = display
        self._backend = BACKENDS[options.backend]
        self._interpreter = find(self._backend, options.backend_python, checkpoint.config.model_type)
        recipe = self._recipe()
        self.targets = recipe.targets
        self._notes = (*recipe.notes, *self._padding_note())
        self.folder = options.work_folder / "work"
        self._placing = Placing(options.out, recipe.targets, self.folder, options.fingerprint())
        self._device = choose_device(options.device)
        self._windows: Windows
        self._material: Material | None = None

    def is_placed(self) -> bool:
        """Whether an earlier call has placed its results, and was stopped in the gate or while tidying up."""
        return self._placing.is_done()

    def check(self) -> None:
        """Check everything that needs no peer, and tokenize the texts; nothing is written."""
        self._placing.check(self._options.overwrite)
        if (self.folder / FILE_NAME).exists():
            raise ResumeError(
                f"{self.folder}: holds an unfinished run of qlocal's own quantizer",
                hint=f"Continue it without --backend, or delete {self.folder}.",
            )
        num_bytes = sum(target.num_bytes for target in self.targets)
        check_disk(
            Estimate(memory=0, activations=0, work=0, result=num_bytes, card=0),
            self.folder,
            self._options.out,
            already=0,
        )
        self._windows = windows_of(self._source, self._options.calibration)
        if self._options.verify:
            self._material = read_material(self._source, Reading())

    def ask(self) -> list[Staged]:
        """Have the peer make every result; returns how each is put in place."""
        for note in (*self._notes, *self._windows.notes):
            self._display.say(note)
        hashes = SourceHashes(self._source.files, {})
        try:
            hashes.begin(self._source.files)
            made = [self._make(target) for target in self.targets]
            digests = hashes.finish()
            return [self._staged(target, seconds, digests) for target, seconds in zip(self.targets, made, strict=True)]
        except KeyboardInterrupt:
            self._drop_all()
            raise KeyboardInterrupt(BEGINS_ANEW) from None
        except QLocalError:
            shutil.rmtree(self._placing.beside, ignore_errors=True)  # its log stays
            raise
        finally:
            hashes.close()

    def place(self, staged: list[Staged]) -> None:
        """Put the results in place."""
        self._placing.put(staged)

    def gate(self) -> list[str]:
        """Hold the placed results against the source and write that into their reports; returns what failed."""
        limits = self._options.limits
        return hold_against_source(self._source, self.targets, self._material, self._device, limits, self._display)

    def tidy(self) -> None:
        """Delete the work."""
        self._placing.tidy()

    def _make(self, target: Target) -> float:
        """Run the peer for one result, into the folder beside it; returns its seconds."""
        log = self.folder / f"{self._options.backend}-{target.name}.log"
        scratch, made = self.folder / "scratch", self._made(target)
        for folder in (scratch, made):
            shutil.rmtree(folder, ignore_errors=True)
        scratch.mkdir()
        made.parent.mkdir(parents=True, exist_ok=True)
        self._display.say(f"{self._interpreter.tool} makes {target.name}; what it says goes to {log}")
        started = time.monotonic()
        try:
            self._interpreter.quantize(
                self._request(target), scratch, log, environment(self._options.device), self._display.peer_line
            )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        seconds = time.monotonic() - started
        if not made.is_dir():
            raise EngineError(f"{self._interpreter.tool} ended without a result", hint=f"Its output lies in {log}.")
        _finish_folder(made, self._source.path)
        return seconds

    def _request(self, target: Target) -> dict[str, Any]:
        settings = _settings(target)
        return {
            "package": self._backend.package,
            "source": str(self._source.path.absolute()),
            "out": str(self._made(target)),
            "format": settings.method,
            "checkpoint_format": settings.checkpoint_format,
            "group_size": settings.group_size,
            "symmetric": settings.symmetric,
            "desc_act": settings.desc_act,
            "shard_bytes": self._options.shard_bytes,
            "device": {"auto": None, "cpu": "cpu"}.get(self._options.device, "cuda:0"),  # it sees no other
            "windows": self._windows.ids.tolist(),
        }

    def _staged(self, target: Target, seconds: float, source_sha256: dict[str, str]) -> Staged:
        made = self._made(target)
        report = {
            "model": self._name,
            "result": target.name,
            "format": target.format,
            "method": f"{self._backend.title}'s own {target.format.upper()}; {scheme(_settings(target))}",
            "tool": self._interpreter.tool,
            "backend": {"name": self._options.backend, "versions": dict(self._interpreter.versions)},
            "calibration": self._windows.sentence,
            "notes": [*self._notes, *self._windows.notes],
            **sizes(open_checkpoint(made)),
            "mean_loss": None,
            "losses": {},
            "seconds_by_unit": {},
            "seconds": round(seconds, 2),
            "source_sha256": source_sha256,
        }
        return Staged(target, functools.partial(_move, made), report)

    def _made(self, target: Target) -> Path:
        return self._placing.beside / target.name

    def _recipe(self) -> Recipe:
        """Return the plan without padding; UsageError where it cannot do without."""
        options, source = replace(self._options, pad_ffn="none"), self._source
        try:
            return make_recipe(source.architecture, source.config, options, self._name)
        except UsageError as error:
            if not self._padding_note():
                raise
            hint = f"{self._backend.title} does not pad; leave out --backend, and qlocal's own quantizer pads the FFN."
            raise UsageError(error.message, hint=hint) from error

    def _padding_note(self) -> tuple[str, ...]:
        """Say when our own quantizer would pad the FFN, which peers know nothing of."""
        config = self._source.config
        padded, _ = padded_config(config, self._options.pad_ffn)
        if padded == config:
            return ()
        return (
            f"The FFN keeps its {config.intermediate_size} columns: {self._backend.title} does not pad, where qlocal "
            f"goes to {padded.intermediate_size}.",
        )

    def _drop_all(self) -> None:
        """Leave nothing of an interrupted run."""
        shutil.rmtree(self._placing.beside, ignore_errors=True)
        for log in self.folder.glob(f"{self._options.backend}-*.log"):
            log.unlink()


def _settings(target: Target) -> QuantizationConfig:
    assert target.settings is not None, "check_arguments admits folders alone"
    return target.settings


def _move(made: Path, place: Path) -> None:
    made.rename(place)


def _finish_folder(folder: Path, source: Path) -> None:
    """Give a folder the source's own tokenizer, and flush all of it."""
    try:
        copy_tokenizer(source, folder)  # the peer has written it anew, perhaps otherwise
        for path in folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(folder)
    except OSError as error:
        raise disk_error(folder, error) from error
