"""`qlocal doctor`: prints what the machine offers, and which setting came from where."""

from __future__ import annotations

import argparse
import json
from typing import Any

from qlocal import doctor
from qlocal.clean import clean_line
from qlocal.commands.options import human_bytes

BYTES = ("total", "available", "swap_total", "swap_free", "free", "free_disk")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    found = doctor.examine()
    if args.json:
        print(json.dumps(found))
        return 0
    for title, part in found.items():
        print(title)
        for line in _lines(part):
            print(f"  {clean_line(line)}")
    return 0


def _lines(part: Any) -> list[str]:
    if isinstance(part, list):
        return [_one(item) for item in part] or ["none"]
    if isinstance(part, dict):
        return [line for name, value in part.items() for line in _named(name, value)]
    return [str(part)]


def _named(name: str, value: Any) -> list[str]:
    if name == "values":
        return [f"{key:14} {setting['value']}  ({setting['source']})" for key, setting in value.items()]
    if isinstance(value, dict):
        return [f"{key:14} {inner}" for key, inner in value.items()]
    return [f"{name:14} {_shown(name, value)}"]


def _one(item: dict[str, Any]) -> str:
    if "chosen" in item:
        return f"{'*' if item['chosen'] else ' '} {item['name']:10} {item['reason']}"
    return ", ".join(f"{name} {_shown(name, value)}" for name, value in item.items())


def _shown(name: str, value: Any) -> str:
    if name in BYTES and isinstance(value, int):
        return human_bytes(value)
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "not installed" if value is None else str(value)
