"""The gate: what was quantized is held against its source, and fails where it lost too much.

`quantize` ends with it; `quantize verify OUT --source SOURCE` runs it alone, on any checkpoint of the same model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qlocal import catalog
from qlocal.errors import QualityError, UsageError
from qlocal.formats.base import Checkpoint
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.formats.hf_checkpoint import HfCheckpoint
from quantize.arguments import Parser
from quantize.device import choose_device
from quantize.gate.limits import Limits, add_limit_options
from quantize.gate.measure import Measured, measure
from quantize.gate.streaming import Machine, OnLayer
from quantize.gate.texts import Material, Reading, read_material
from quantize.options import check_device
from quantize.report.display import open_display
from quantize.report.files import read_report, write_pages, write_report
from quantize.report.summary import describe, gate_rows, place, sizes
from quantize.source import PaddedSource, open_source

GATE_FAILED = QualityError.exit_code
_SAME = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "num_experts")


@dataclass(frozen=True)
class Verdict:
    """What the gate says of one result. report: the result's own, or what its headers say, with `verify` added."""

    path: Path
    measured: Measured
    failures: list[str]
    report: dict[str, Any]

    @property
    def sentence(self) -> str:
        """What failed, and where the result is farthest from its source."""
        worst = ", ".join(f"{place(name)} {error:.4g}" for name, error in self.measured.worst)
        return f"{self.path.name} fails the gate: {'; '.join(self.failures)}; the largest output errors: {worst}"

    def add_to_report(self, *, with_card: bool) -> None:
        """Write the verdict into the report that lies with the result."""
        write_report(self.path, self.report, with_card=with_card)


def judge(
    source: HfCheckpoint | PaddedSource,
    results: Sequence[Path],
    material: Material,
    machine: Machine,
    limits: Limits,
    on_layer: OnLayer | None = None,
) -> list[Verdict]:
    """Hold results against their source; one pass over the source serves all. UsageError for another model's."""
    candidates = [open_checkpoint(path) for path in results]
    for candidate in candidates:
        _check_pair(source, candidate)
    widths = {candidate.config.intermediate_size for candidate in candidates}
    if len(widths) > 1:
        raise UsageError(f"the results have different FFN widths: {', '.join(map(str, sorted(widths)))}")
    if not isinstance(source, PaddedSource):
        source = PaddedSource(source, replace(source.config, intermediate_size=widths.pop()))
    measured = measure(source, candidates, material, machine, on_layer)
    return [_verdict(*pair, limits) for pair in zip(results, candidates, measured, strict=True)]


def verify_command(arguments: Sequence[str]) -> int:
    """Run `quantize verify ...`; returns 0. QualityError when the gate fails."""
    parsed = build_parser().parse_args(list(arguments))
    limits = Limits.of(parsed)
    check_device(parsed.device)
    machine = Machine(choose_device(parsed.device), parsed.dtype)
    source, results = open_source(catalog.resolve(parsed.source)), find_results(catalog.resolve(parsed.out))
    material = read_material(source, Reading(tuple(parsed.text), parsed.chunks, parsed.length))
    with open_display() as display:
        verdicts = judge(source, results, material, machine, limits, display.gate_layer)
    for verdict in verdicts:
        _report(verdict, parsed.report)
    if parsed.json:
        print(json.dumps({"results": [{"path": str(v.path), **v.report["verify"]} for v in verdicts]}, indent=1))
    else:
        for verdict in verdicts:
            _print(verdict)
    failed = [verdict.sentence for verdict in verdicts if verdict.failures]
    if failed:
        raise QualityError("; ".join(failed))
    return 0


def build_parser() -> Parser:
    """Return the parser of `quantize verify`."""
    parser = Parser(prog="quantize verify", description="Hold a quantized checkpoint against its source.")
    add = parser.add_argument
    add("out", metavar="OUT", help="AWQ or GPTQ folder, .gguf file, or a folder with several of them")
    add("--source", required=True, metavar="SOURCE", help="the BF16 folder it was made from")
    add("--text", type=Path, nargs="+", default=[], metavar="FILE", help="texts to predict; .jsonl for conversations")
    add("--chunks", type=int, default=Reading.num_chunks, help="windows of plain text")
    add("--length", type=int, default=Reading.length, help="tokens of a window, and the most of a conversation")
    add_limit_options(parser)
    add("--device", default="auto", help="where layers are run: auto, cpu, cuda:0")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="inputs of matrix products")
    add("--report", type=Path, metavar="DIR", help="write JSON and HTML there, also of a result made elsewhere")
    add("--json", action="store_true", help="machine-readable output")
    return parser


def find_results(path: Path) -> list[Path]:
    """Return the results at `path`: itself, or those in a folder that `quantize` filled with several."""
    if path.is_file() or (path / "config.json").exists():
        return [path]
    found = [p for p in sorted(path.iterdir()) if p.suffix == ".gguf" or (p / "config.json").is_file()]
    if not found:
        raise UsageError(f"{path}: holds no checkpoint", hint="OUT is an AWQ or GPTQ folder, or a .gguf file.")
    return found


def _check_pair(source: Checkpoint, candidate: Checkpoint) -> None:
    """Raise UsageError when the two are not of one model; the FFN may be padded."""
    for field in _SAME:
        ours, theirs = getattr(candidate.config, field), getattr(source.config, field)
        if ours != theirs:
            raise UsageError(f"the candidate has {field} {ours}, the source {theirs}: they are different models")
    ours, theirs = candidate.config.intermediate_size, source.config.intermediate_size
    if ours < theirs:
        raise UsageError(f"the candidate's FFN has {ours} columns, the source's {theirs}: they are different models")


def _verdict(path: Path, candidate: Checkpoint, measured: Measured, limits: Limits) -> Verdict:
    report = {**describe(candidate), **(read_report(path) or {}), **sizes(candidate)}
    return Verdict(path, measured, measured.failures(limits), {**report, "verify": measured.to_json(limits)})


def _report(verdict: Verdict, folder: Path | None) -> None:
    """Write the verdict to the result's own report, where it has one, and to `folder`."""
    if read_report(verdict.path) is not None:
        verdict.add_to_report(with_card=False)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        name = verdict.path.name.removesuffix(".gguf")
        write_pages(folder / f"{name}.json", folder / f"{name}.html", verdict.report)


def _print(verdict: Verdict) -> None:
    gate = verdict.report["verify"]
    print(f"{verdict.path.name}, over {gate['text']}")
    for name, value, limit in gate_rows(gate):
        print(f"  {name:46} {value:>20}  {limit}".rstrip())
    print(f"  passed, in {gate['seconds']:.1f} s" if gate["passed"] else "  failed: " + "; ".join(verdict.failures))
