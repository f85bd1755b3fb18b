"""Where the report of a result lies: in its folder, or beside its GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quantize.report.page import html_page
from quantize.report.summary import card
from quantize.state import write_durably

NAME = "quantization_report"
CARD = "README.md"
_TEXTS = ("model", "result", "format", "method", "tool", "calibration")
_TABLES: dict[str, tuple[type, ...]] = {
    "losses": (int, float),
    "seconds_by_unit": (int, float),
    "source_sha256": (str,),
}


def report_files(result: Path) -> tuple[Path, Path, Path]:
    """Return the places of JSON, HTML and card of the result at `result`; it need not exist yet."""
    if result.suffix == ".gguf":
        return result.with_suffix(".json"), result.with_suffix(".html"), result.with_suffix(".md")
    return result / f"{NAME}.json", result / f"{NAME}.html", result / CARD


def files_beside(result: Path) -> tuple[Path, ...]:
    """Return what lies beside a result and moves with it: nothing where the report is in its folder."""
    return report_files(result) if result.suffix == ".gguf" else ()


def write_report(result: Path, report: dict[str, Any], *, with_card: bool) -> None:
    """Write the report of a result; the card too, unless its owner may have changed it since."""
    json_path, html_path, card_path = report_files(result)
    write_pages(json_path, html_path, report)
    if with_card:
        write_durably(card_path, card(report).encode())


def write_pages(json_path: Path, html_path: Path, report: dict[str, Any]) -> None:
    """Write a report as JSON and as HTML."""
    write_durably(json_path, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    write_durably(html_path, html_page(report).encode())


def read_report(result: Path) -> dict[str, Any] | None:
    """Return the report that `quantize` left with a result; None where there is none, or something else."""
    try:
        report = json.loads(report_files(result)[0].read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if _is_report(report) else None


def _is_report(content: Any) -> bool:
    """Whether this is what `Summary.to_json` wrote, of this version or an earlier one, so far as the pages read it."""
    if not isinstance(content, dict) or not all(isinstance(content.get(key), str) for key in _TEXTS):
        return False
    tables = [(content.get(key, {}), kind) for key, kind in _TABLES.items()]
    are_tables = all(isinstance(t, dict) and all(isinstance(v, kind) for v in t.values()) for t, kind in tables)
    notes = content.get("notes")
    has_notes = isinstance(notes, list) and all(isinstance(note, str) for note in notes)
    return are_tables and has_notes and isinstance(content.get("seconds"), (int, float))
