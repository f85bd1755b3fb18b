"""The end of every run, whoever has quantized: the results are held against their source, and their reports read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qlocal.formats.hf_checkpoint import HfCheckpoint
from quantize.gate.limits import Limits
from quantize.gate.streaming import Machine
from quantize.gate.texts import Material, Reading, read_material
from quantize.recipe import Target
from quantize.report.display import Display
from quantize.report.files import read_report
from quantize.source import PaddedSource
from quantize.verify import judge


@dataclass(frozen=True)
class Outcome:
    """What a call has come to. reports: of every result; failures: a sentence for every result that failed the gate."""

    reports: list[dict[str, Any]]
    failures: list[str]


def reports_of(targets: Sequence[Target]) -> list[dict[str, Any]]:
    """Return the reports that lie with the placed results."""
    return [report for target in targets if (report := read_report(target.path)) is not None]


def hold_against_source(
    source: HfCheckpoint | PaddedSource,
    targets: Sequence[Target],
    material: Material | None,
    device: str,
    limits: Limits,
    display: Display,
) -> list[str]:
    """Measure the placed results, write that into their reports, and return a sentence for each that failed."""
    started = time.monotonic()
    display.say("Holding the result against its source (--no-verify leaves that out) ...")
    material = material or read_material(source, Reading())
    paths = [target.path for target in targets]
    verdicts = judge(source, paths, material, Machine(device), limits, display.gate_layer)
    for verdict in verdicts:
        verdict.add_to_report(with_card=True)
    seconds = time.monotonic() - started
    display.say(f"The gate took {seconds:.1f} s{_share(seconds, reports_of(targets))}.")
    return [verdict.sentence for verdict in verdicts if verdict.failures]


def _share(gate_s: float, reports: Sequence[dict[str, Any]]) -> str:
    """Say what part of the whole the gate was."""
    # Results that were made together tell the same seconds, and those count once.
    quantizing_s = sum({report["seconds"] for report in reports if report.get("seconds")})
    return f", {100 * gate_s / (gate_s + quantizing_s):.0f} % of the whole" if quantizing_s else ""
