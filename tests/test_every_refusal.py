"""Every `raise` in what reads strangers' files is reached by a test: no message that nobody has ever seen."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COVERAGE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["coverage"]
READERS = [ROOT / name for name in COVERAGE["run"]["include"]]
TESTS = [
    "tests/formats",
    "tests/guard/test_documents.py",
    "tests/guard/test_vocabularies.py",
    "tests/guard/test_refusals.py",
    "tests/test_strict_json.py",
]
NAMES = "refus or hostile or damaged or malformed or named or broken or sentence or missing or disagree or exact"
OURS = ("Error", "vocabulary_error", "template_error")
FOREIGN = {"ValueError", "SecurityError", "_NeedMoreBytes", "_Refusal"}
"""Caught in the same file and turned into ours there."""


def raise_sites(path: Path) -> dict[str, range]:
    """Return the lines of every `raise` of an error of ours, by `file:line`."""
    sites = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = node.exc.func.attr if isinstance(node.exc.func, ast.Attribute) else ast.unparse(node.exc.func)
            if name.endswith(OURS) and name not in FOREIGN:
                assert node.end_lineno is not None
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                sites[where] = range(node.lineno, node.end_lineno + 1)
    return sites


def test_every_refusal_of_the_readers_is_reached_by_a_test(tmp_path: Path) -> None:
    expected = {where: lines for path in READERS for where, lines in raise_sites(path).items()}
    assert len(expected) > 130
    command = [sys.executable, "-m", "pytest", "-p", "tests.reached", "-p", "no:cacheprovider", "-k", NAMES, *TESTS]
    record = tmp_path / "reached"
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"QLOCAL_REACHED": str(record)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    reached = set(record.read_text().split("\n"))
    unseen = [
        where
        for where, lines in expected.items()
        if not any(f"{where.partition(':')[0]}:{line}" in reached for line in lines)
    ]
    assert not unseen, "no test reaches: " + ", ".join(unseen)
