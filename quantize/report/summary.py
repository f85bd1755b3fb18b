"""The report of a run: sizes, losses, what was decided, how long it took; as JSON and as the card's Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import qlocal
from quantize.options import Options
from quantize.recipe import Recipe, Target
from quantize.state import Journal

_METHODS = {"awq": "AWQ: activation-aware scales and clipping", "gptq": "GPTQ: rounding that makes up for its errors"}


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
        parameters = sum(_product(tensor.shape) for tensor in target.tensors)
        return {
            "model": self.name,
            "result": target.name,
            "format": target.format,
            "method": method_name(target, self.options),
            "tool": f"qlocal {qlocal.__version__}",
            "calibration": self.calibration,
            "notes": [*self.notes, *self._unit_notes(target)],
            "tensor_bytes": target.num_bytes,
            "parameters": parameters,
            "bits_per_weight": round(8 * target.num_bytes / parameters, 4),
            "bytes_by_type": bytes_by_type(target),
            "mean_loss": sum(losses.values()) / len(losses) if losses else None,
            "losses": losses,
            "seconds_by_unit": {name: round(unit.seconds, 2) for name, unit in self.journal.units.items()},
            "seconds": round(sum(unit.seconds for unit in self.journal.units.values()), 2),
        }

    def card(self, target: Target) -> str:
        """Return the Markdown that lies beside a result."""
        report = self.to_json(target)
        lines = [
            f"# {self.name}, {target.name}",
            "",
            f"Quantized with qlocal {qlocal.__version__} from the model's BF16 checkpoint.",
            "",
            "## What was done",
            "",
            f"- {report['method']}.",
            f"- {self.calibration}",
            *(f"- {note}" for note in report["notes"]),
            "",
            "## Size",
            "",
            f"{target.num_bytes:,} bytes of tensors, {report['bits_per_weight']:.3f} bits a weight.",
            "",
            "| type | bytes |",
            "|---|---:|",
            *(f"| {kind} | {size:,} |" for kind, size in report["bytes_by_type"].items()),
            "",
            "## What it measured",
            "",
            "Relative error of the outputs of every kind of linear over the calibration inputs, ‖(W - Q) X‖² / ‖W X‖²:",
            "",
            "| linear | mean | largest |",
            "|---|---:|---:|",
            *_loss_rows(report["losses"]),
            "",
            f"It took {report['seconds']:.0f} s.",
            "",
        ]
        return "\n".join(lines)

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
        kind = "plain rounding" if options.rtn else "importance matrix" if options.imatrix else "no importance matrix"
        return f"GGUF {target.name}, {kind}"
    assert target.settings is not None, "folders have settings"
    method = "Plain rounding" if options.rtn else _METHODS[target.format]
    order = ", columns by their energy (desc_act)" if target.settings.desc_act else ""
    symmetry = "symmetric" if target.settings.symmetric else "asymmetric"
    return f"{method}; 4 bit, {symmetry}, groups of {target.settings.group_size}{order}"


def bytes_by_type(target: Target) -> dict[str, int]:
    """Return the bytes of tensors by their type, most first."""
    sizes: dict[str, int] = {}
    for tensor in target.tensors:
        sizes[tensor.storage] = sizes.get(tensor.storage, 0) + tensor.num_bytes
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _loss_rows(losses: dict[str, float]) -> list[str]:
    by_kind: dict[str, list[float]] = {}
    for module, loss in losses.items():
        by_kind.setdefault(module.rsplit(".", 1)[-1], []).append(loss)
    return [f"| {kind} | {sum(v) / len(v):.6f} | {max(v):.6f} |" for kind, v in by_kind.items()]


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
