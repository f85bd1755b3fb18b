"""The report as one HTML file: nothing is fetched, nothing runs, and every text in it is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from quantize.recipe import HEAD_UNIT
from quantize.report import charts
from quantize.report.charts import Value
from quantize.report.summary import gate_rows, place

NUM_WORST = 12
_STYLE = """
body { font: 15px/1.5 sans-serif; color: #222; background: #fff; max-width: 880px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: .5em 0; } td, th { padding: .2em .9em .2em 0; text-align: left; }
td.n { text-align: right; font-variant-numeric: tabular-nums; } tr + tr td { border-top: 1px solid #eee; }
.verdict { padding: .6em 1em; border-left: 6px solid; } .passed { border-color: #009e73; background: #eefaf5; }
.failed { border-color: #c00000; background: #fdf0f0; } .unknown { border-color: #999; background: #f5f5f5; }
svg { max-width: 100%; height: auto; } code { font-size: 12px; word-break: break-all; } h2 { margin-top: 1.6em; }
"""


def html_page(report: dict[str, Any]) -> str:
    """Return the page of one result's report, with what the gate measured where it has run."""
    title = f"{report['model']}, {report['result']}"
    gate = report.get("verify")
    sections = [
        f"<h1>{escape(title)}</h1>",
        _verdict(gate),
        *(_gate(gate) if gate else []),
        *_losses(report),
        *_bits(report),
        *_sizes(report),
        *_times(report),
        *_origin(report),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    )
    head += f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    body = "\n".join(sections)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _verdict(gate: dict[str, Any] | None) -> str:
    if gate is None:
        return '<p class="verdict unknown">The gate has not run: the result was not held against its source.</p>'
    if gate["passed"]:
        return '<p class="verdict passed">The gate passed.</p>'
    items = "".join(f"<li>{escape(failure)}</li>" for failure in gate["failures"])
    return f'<div class="verdict failed">The gate failed:<ul>{items}</ul></div>'


def _gate(gate: dict[str, Any]) -> list[str]:
    rows = [(name, value, limit) for name, value, limit in gate_rows(gate)]
    errors: dict[str, Value] = gate["linear_errors"]
    ranked = sorted(errors.items(), key=lambda item: math.inf if item[1] is None else item[1], reverse=True)
    worst = [(place(name), _error(value)) for name, value in ranked[:NUM_WORST]]
    limit = gate["limits"]["max_linear_error"]
    return [
        "<h2>Against its source</h2>",
        f"<p>Over {escape(gate['text'])} Products took {escape(gate['dtype'])} inputs.</p>",
        _table(("measure", "value", "limit"), rows),
        "<h2>Output error by layer and kind of linear</h2>",
        "<p>‖Wx − Qx‖² / ‖Wx‖², each linear with its inputs in the BF16 model"
        " (of experts, the largest of a layer).</p>",
        charts.lines(_by_kind(errors), "layer", limit),
        f"<h2>The {len(worst)} largest</h2>",
        _table(("linear", "output error"), worst),
    ]


def _losses(report: dict[str, Any]) -> list[str]:
    losses = {name: value for name, value in report.get("losses", {}).items() if place(name).startswith("layer ")}
    if not losses:
        return []
    return [
        "<h2>Error over the calibration inputs</h2>",
        "<p>What the method itself saw while it quantized.</p>",
        charts.lines(_by_kind(losses), "layer"),
    ]


def _bits(report: dict[str, Any]) -> list[str]:
    values = list(report["bits_by_layer"].items())
    return [
        "<h2>Bits a weight by layer</h2>",
        charts.columns(
            values, f"layer ({HEAD_UNIT}: embedding, final norm and head)", "bits", report["bits_per_weight"]
        ),
    ]


def _sizes(report: dict[str, Any]) -> list[str]:
    sizes = [(kind, float(size), f"{size:,} bytes") for kind, size in report["bytes_by_type"].items()]
    total = f"{report['tensor_bytes']:,} bytes of tensors, {report['bits_per_weight']:.3f} bits a weight."
    return ["<h2>Size by type</h2>", f"<p>{total}</p>", charts.bars(sizes)]


def _times(report: dict[str, Any]) -> list[str]:
    if "seconds" not in report:
        return []
    seconds = list(report.get("seconds_by_unit", {}).items())
    gate = report.get("verify")
    verified = f" The gate took another {gate['seconds']:.0f} s." if gate else ""
    told = f"<p>{report['seconds']:.0f} s to quantize.{verified}</p>"
    if not seconds:
        return ["<h2>Time</h2>", told]
    return ["<h2>Time by layer</h2>", told, charts.columns(seconds, "layer", "s")]


def _origin(report: dict[str, Any]) -> list[str]:
    told = [report.get("method"), report.get("calibration"), report.get("tool"), *report.get("notes", [])]
    lines = "".join(f"<li>{escape(str(line))}</li>" for line in told if line)
    hashes = [(name, f"<code>{escape(digest)}</code>") for name, digest in report.get("source_sha256", {}).items()]
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{code}</td></tr>" for name, code in hashes)
    parts = [f"<h2>How it was made</h2><ul>{lines}</ul>"] if lines else []
    return parts + ([f"<h2>SHA-256 of the source's files</h2><table>{rows}</table>"] if rows else [])


def _by_kind(errors: dict[str, Value]) -> dict[str, list[tuple[int, Value]]]:
    """Return (layer, error) by the last part of the linear's name; of several experts the largest counts."""
    largest: dict[str, dict[int, Value]] = {}
    for module, error in errors.items():
        words = module.removeprefix("model.layers.").split(".")
        if not words[0].isdigit():
            continue  # head and embedding stand in the table
        of_layer, layer = largest.setdefault(words[-1], {}), int(words[0])
        before = of_layer.get(layer, 0.0)
        of_layer[layer] = None if error is None or before is None else max(before, error)
    return {kind: sorted(of_layer.items()) for kind, of_layer in largest.items()}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>"
        + "".join(f"<td{' class=n' if at == 1 else ''}>{escape(cell)}</td>" for at, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{names}</tr>{body}</table>"


def _error(value: Value) -> str:
    return "not a number" if value is None else f"{value:.6f}"
