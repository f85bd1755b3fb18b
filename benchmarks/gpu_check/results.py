"""The tables of a check, in one file a card and day: several calls with different sections fill it."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Table:
    """A section's result. failed: what is wrong, one sentence each; a check with any ends with 1."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    notes: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", _line(self.columns), _line(tuple("---" for _ in self.columns))]
        lines += [_line(row) for row in self.rows]
        lines += ["", *self.notes, *(f"**Failed: {sentence}**" for sentence in self.failed), ""]
        return "\n".join(lines)


def save(folder: Path, card: str, machine: dict[str, Any], tables: dict[str, Table]) -> Path:
    """Add tables by section to today's files of a card, and return the JSON one."""
    slug = re.sub("[^a-z0-9]+", "-", card.lower()).strip("-")
    path = folder / f"gpu-{slug}-{time.strftime('%Y-%m-%d')}.json"
    folder.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else {"sections": {}}
    sections = before["sections"] | {name: asdict(table) for name, table in tables.items()}
    path.write_text(json.dumps({"machine": machine, "sections": sections}, indent=1) + "\n")
    text = [f"# {card}", "", *(f"- {name}: {value}" for name, value in machine.items()), ""]
    text += [_of_json(section).markdown() for section in sections.values()]
    path.with_suffix(".md").write_text("\n".join(text))
    return path


def _of_json(section: dict[str, Any]) -> Table:
    rows = [tuple(row) for row in section["rows"]]
    lists = (tuple(section[name]) for name in ("notes", "failed"))
    return Table(section["title"], tuple(section["columns"]), rows, *lists)


def _line(cells: tuple[Cell, ...]) -> str:
    return "| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"
