"""The report of a run: sizes, losses, what was decided, how long it took; as JSON and as the card's Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import qlocal
from qlocal.formats.base import Checkpoint
from qlocal.formats.quantization_config import QuantizationConfig
from quantize.options import NATIVE, Options
from quantize.recipe import HEAD_UNIT, Recipe, Target
from quantize.state import Journal

_METHODS = {
    "awq": "AWQ: activation-aware scales, then rounding that makes up for its errors",
    "gptq": "GPTQ: columns scaled, then rounding that makes up for its errors",
}


@dataclass(frozen=True)
class Summary:
    """Everything a report says. calibration: a sentence; notes: decisions of the recipe and of calibration."""

    name: str
    options: Options
    recipe: Recipe
    journal: Journal
    calibration: str
    notes: tuple[str, ...]

    def to_json(self, target: Target) -> dict[str, Any]:
        """Return the report of one result."""
        losses = {k: v for unit in self.journal.units.values() for k, v in unit.losses.get(target.name, {}).items()}
        parameters = sum(math.prod(tensor.shape) for tensor in target.tensors)
        return {
            "model": self.name,
            "result": target.name,
            "format": target.format,
            "method": method_name(target, self.options),
            "tool": f"qlocal {qlocal.__version__}",
            "backend": {"name": NATIVE, "versions": {"qlocal": qlocal.__version__}},
            "calibration": self.calibration,
            "notes": [*self.notes, *self._unit_notes(target)],
            "tensor_bytes": target.num_bytes,
            "parameters": parameters,
            "bits_per_weight": round(8 * target.num_bytes / parameters, 4),
            "bytes_by_type": bytes_by_type((tensor.storage, tensor.num_bytes) for tensor in target.tensors),
            "bits_by_layer": self._bits_by_layer(target),
            "mean_loss": sum(losses.values()) / len(losses) if losses else None,
            "losses": losses,
            "seconds_by_unit": {name: round(unit.seconds, 2) for name, unit in self.journal.units.items()},
            "seconds": round(sum(unit.seconds for unit in self.journal.units.values()), 2),
            "source_sha256": self.journal.source_sha256,
        }

    def _bits_by_layer(self, target: Target) -> dict[str, float]:
        specs = self.recipe.architecture.tensors(self.recipe.config_of(target))
        layer_of = {name: spec.layer for spec in specs for name in (spec.name, spec.gguf_name)}
        return bits_by_layer((layer_of[t.name], t.num_bytes, math.prod(t.shape)) for t in target.tensors)

    def _unit_notes(self, target: Target) -> list[str]:
        return [
            note.removeprefix(f"{target.name}: ")
            for unit in self.journal.units.values()
            for note in unit.notes
            if note.startswith(f"{target.name}: ")
        ]


def method_name(target: Target, options: Options) -> str:
    """Return what was done to the weights, in a few words."""
    if target.format == "gguf":
        return f"GGUF {target.name}, {_gguf_method(options)}"
    assert target.settings is not None, "folders have settings"
    method = "Plain rounding" if options.rtn else _METHODS[target.format]
    return f"{method}; {scheme(target.settings)}"


def scheme(settings: QuantizationConfig) -> str:
    """Return how codes, scales and zero points of a folder are laid out, in a few words."""
    order = ", columns by their energy (desc_act)" if settings.desc_act else ""
    symmetry = "symmetric" if settings.symmetric else "asymmetric"
    head = ", the head too" if settings.head is not None else ""
    return f"4 bit, {symmetry}, groups of {settings.group_size}{order}{head}"


def _gguf_method(options: Options) -> str:
    if options.rtn:
        return "plain rounding"
    if options.uses_hessian:
        return "error feedback into its blocks"
    return "importance matrix" if options.imatrix else "no importance matrix"


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the report of a checkpoint that was made elsewhere: what its headers say."""
    name = {"model": checkpoint.path.name, "result": checkpoint.format, "format": checkpoint.format}
    return {**name, "notes": [], **sizes(checkpoint)}


def sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the part of a report that the headers of a checkpoint tell."""
    stored = list(checkpoint.tensors.values())
    num_bytes, parameters = sum(t.num_bytes for t in stored), sum(math.prod(t.shape) for t in stored)
    return {
        "tensor_bytes": num_bytes,
        "parameters": parameters,
        "bits_per_weight": round(8 * num_bytes / parameters, 4),
        "bytes_by_type": bytes_by_type((t.storage, t.num_bytes) for t in stored),
        "bits_by_layer": bits_by_layer((t.spec.layer, t.num_bytes, math.prod(t.shape)) for t in stored),
    }


def bytes_by_type(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return the bytes of tensors by their type, most first, from (type, bytes)."""
    total: dict[str, int] = {}
    for storage, num_bytes in sizes:
        total[storage] = total.get(storage, 0) + num_bytes
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def bits_by_layer(sizes: Iterable[tuple[int | None, int, int]]) -> dict[str, float]:
    """Return bits a weight by unit of work, from (layer, bytes, weights) of every tensor; None is beside the layers."""
    total: dict[int | None, list[int]] = {}
    for layer, num_bytes, weights in sizes:
        entry = total.setdefault(layer, [0, 0])
        entry[0] += num_bytes
        entry[1] += weights
    layers = sorted(layer for layer in total if layer is not None)
    units = [(str(layer), total[layer]) for layer in layers] + ([(HEAD_UNIT, total[None])] if None in total else [])
    return {unit: round(8 * num_bytes / weights, 4) for unit, (num_bytes, weights) in units}


def card(report: dict[str, Any]) -> str:
    """Return the Markdown that lies beside a result, from its report."""
    lines = [
        f"# {report['model']}, {report['result']}",
        "",
        f"Quantized with {report['tool']} from the model's BF16 checkpoint.",
        "",
        "## What was done",
        "",
        f"- {report['method']}.",
        f"- {report['calibration']}",
        *(f"- {note}" for note in report["notes"]),
        "",
        "## Size",
        "",
        f"{report['tensor_bytes']:,} bytes of tensors, {report['bits_per_weight']:.3f} bits a weight.",
        "",
        "| type | bytes |",
        "|---|---:|",
        *(f"| {kind} | {size:,} |" for kind, size in report["bytes_by_type"].items()),
        "",
        *_loss_lines(report["losses"]),
        f"It took {report['seconds']:.0f} s.",
        "",
        *_gate_lines(report.get("verify")),
    ]
    return "\n".join(lines)


def _gate_lines(gate: dict[str, Any] | None) -> list[str]:
    """Return the section about the distance from the source, once the gate has measured it."""
    if gate is None:
        return []
    return [
        "## Against its source",
        "",
        f"Over {gate['text']}",
        "",
        "| measure | value |",
        "|---|---:|",
        *(f"| {name} | {value} |" for name, value, _ in gate_rows(gate)),
        "",
        "The gate passed." if gate["passed"] else f"The gate failed: {'; '.join(gate['failures'])}.",
        "",
    ]


def gate_rows(gate: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (measure, value, limit) as texts, for whoever shows what the gate found."""
    limits, stops = gate["limits"], gate["stops"]
    low, high = gate["interval"]
    worst = max(gate["linear_errors"].items(), key=lambda item: math.inf if item[1] is None else item[1])
    ppl_limit = limits["max_ppl_ratio"]
    rows = [
        ("mean KL, nats a token", _number(gate["mean_kl"], ".5f"), f"at most {limits['max_kl']:g}"),
        ("its 95 % interval", f"{_number(low, '.5f')} to {_number(high, '.5f')}", ""),
        ("median KL", _number(gate["median_kl"], ".5f"), ""),
        ("99th percentile of KL", _number(gate["p99_kl"], ".4f"), ""),
        ("largest KL", _number(gate["max_kl"], ".4f"), ""),
        (
            "same top token",
            _number(gate["top1"], ".4f"),
            f"at least {limits['min_top1']:g}" if limits["min_top1"] else "",
        ),
        ("perplexity", _number(gate["ppl"], ".3f"), f"at most {ppl_limit:g} of the source's" if ppl_limit else ""),
        ("perplexity of the source", _number(gate["ppl_source"], ".3f"), ""),
        (
            f"largest output error ({place(worst[0])})",
            _number(worst[1], ".5f"),
            f"at most {limits['max_linear_error']:g}",
        ),
    ]
    if not stops["count"]:
        return [*rows, ("stop token at ends of turns", "no conversations", "")]
    limit = (
        f"at least {limits['min_stop_ratio']:g} of BF16's" if stops["can_tell"] else "none: BF16 does not stop there"
    )
    return [
        *rows,
        (f"stop token at {stops['count']} ends of turns", _number(stops["candidate"], ".4f"), limit),
        ("the same of the source", _number(stops["source"], ".4f"), ""),
    ]


def place(module: str) -> str:
    """Return where a linear is, shorter: `layer 3 mlp.up_proj`."""
    parts = module.removeprefix("model.layers.").split(".", 1)
    return f"layer {parts[0]} {parts[1]}" if parts[0].isdigit() and len(parts) == 2 else module.removeprefix("model.")


def _number(value: float | None, form: str) -> str:
    return "not a number" if value is None else format(value, form)


def _loss_lines(losses: dict[str, float]) -> list[str]:
    """Return the section about what the method itself saw; a peer does not tell."""
    if not losses:
        return []
    return [
        "## What it measured",
        "",
        "Relative error of the outputs of every kind of linear over the calibration inputs, ‖(W - Q) X‖² / ‖W X‖²:",
        "",
        "| linear | mean | largest |",
        "|---|---:|---:|",
        *_loss_rows(losses),
        "",
    ]


def _loss_rows(losses: dict[str, float]) -> list[str]:
    by_kind: dict[str, list[float]] = {}
    for module, loss in losses.items():
        by_kind.setdefault(module.rsplit(".", 1)[-1], []).append(loss)
    return [f"| {kind} | {sum(v) / len(v):.6f} | {max(v):.6f} |" for kind, v in by_kind.items()]
