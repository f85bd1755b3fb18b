"""Does a test notice when what reads strangers' files is wrong? Each mutant is one small mistake in one reader.

    python -m tests.fuzz.mutants [--each 30] [--seed 1] [--jobs 2] [--only qlocal/formats/gguf_reader.py]

Tells every mutant that no test noticed when it is known, and at the end a table by file. A mutant is known by file,
line and change. Tests run in forks of a process that has imported what they need of others; a fork imports the mutant
in the place of its file, which stays as it is.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import importlib.abc
import importlib.machinery
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
_REFUSALS = "tests/formats/test_refusals.py"
_GGUF, _GGUF_LIMITS = "tests/formats/test_gguf_reader.py", "tests/formats/test_gguf_limits.py"
_FIELDS = "tests/formats/test_field_limits.py"
_SAFETENSORS, _SAFETENSORS_LIMITS = "tests/formats/test_safetensors_file.py", "tests/formats/test_safetensors_limits.py"
TESTS = {
    "qlocal/strict_json.py": ["tests/test_strict_json.py"],
    "qlocal/formats/gguf_reader.py": [_GGUF_LIMITS, _GGUF, _REFUSALS],
    "qlocal/formats/gguf_values.py": [_GGUF, _REFUSALS],
    "qlocal/formats/safetensors_file.py": [_SAFETENSORS_LIMITS, _SAFETENSORS, _REFUSALS],
    "qlocal/formats/hf_folder.py": [_FIELDS, "tests/formats/test_hf_folder.py", _REFUSALS],
    "qlocal/formats/mapped_file.py": [_FIELDS, _REFUSALS, _SAFETENSORS],
    "qlocal/formats/quantization_config.py": [_FIELDS, "tests/formats/test_quantized_folders.py", _REFUSALS],
    "qlocal/models/config_fields.py": [_FIELDS, "tests/formats/test_hostile_fields.py", _REFUSALS],
    "qlocal/guard/sentencepiece_proto.py": ["tests/guard/test_vocabularies.py", "tests/guard/test_refusals.py"],
}
"""The tests that are about a file."""
LEAST_SHARE = 0.9
LIMIT_S = 120.0
"""For one mutant: one that makes a test run for ever is noticed."""
_HEAVY = ("gguf", "msgpack", "numpy", "safetensors.torch", "sentencepiece", "tokenizers", "torch")
_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One mistake. source: of the whole file with it."""

    file: str
    line: int
    change: str
    source: str


def mutants(file: str) -> Iterator[Mutant]:
    """Yield every mutant of a file. Texts, docstrings, annotations and decorators are left alone: they say, and do not
    decide."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    decorators = [one for node in ast.walk(tree) for one in getattr(node, "decorator_list", [])]
    left_alone = {id(node) for decorator in decorators for node in ast.walk(decorator)}
    for index, node in enumerate(ast.walk(tree)):
        for change in [] if id(node) in left_alone else _changes(node):
            changed = copy.deepcopy(tree)
            target = next(one for at, one in enumerate(ast.walk(changed)) if at == index)
            told = _apply(target, change)
            yield Mutant(file, getattr(node, "lineno", 0), told, ast.unparse(changed))


def _changes(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
        return ["compare"]
    if isinstance(node, ast.BoolOp):
        return ["and/or"]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ["not"]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS and not _is_text(node) and not _is_type(node):
        return ["operator"]
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return ["number"]
    if isinstance(node, ast.Constant) and type(node.value) is bool:
        return ["bool"]
    return []


def _is_text(node: ast.BinOp) -> bool:
    sides = (node.left, node.right)
    return any(isinstance(side, (ast.JoinedStr, ast.Constant)) and not _is_number(side) for side in sides)


def _is_type(node: ast.BinOp) -> bool:
    """Whether this is `int | None` and the like."""
    sides = (node.left, node.right)
    return isinstance(node.op, ast.BitOr) and all(isinstance(s, (ast.Name, ast.Subscript, ast.BinOp)) for s in sides)


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float))


def _apply(node: ast.AST, change: str) -> str:
    before = ast.unparse(node)
    if isinstance(node, ast.Compare):
        node.ops[0] = _COMPARISONS[type(node.ops[0])]()
    elif isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.UnaryOp):
        node.operand = ast.UnaryOp(ast.Not(), node.operand)
    elif isinstance(node, ast.BinOp):
        node.op = _OPERATORS[type(node.op)]()
    elif isinstance(node, ast.Constant):
        node.value = not node.value if change == "bool" else int(str(node.value)) + 1
    return f"{before} -> {ast.unparse(node)}"


class Finder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports one module as a mutant has it, and leaves all others to those behind it."""

    def __init__(self, mutant: Mutant) -> None:
        self._module = mutant.file.removesuffix(".py").replace("/", ".")
        self._source = mutant.source

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        return importlib.machinery.ModuleSpec(name, self) if name == self._module else None

    def get_source(self, name: str) -> str:
        del name
        return self._source


def start(mutant: Mutant) -> int:
    """Run the tests of the mutant's file in a fork; return its process id. It ends with 0 where all of them pass."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()  # what the tests start ends with it
    with Path(os.devnull).open("r+b") as nowhere:
        for descriptor in range(3):
            os.dup2(nowhere.fileno(), descriptor)
    sys.meta_path.insert(0, Finder(mutant))
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    os._exit(int(pytest.main([*options, *TESTS[mutant.file]])))


def run(chosen: Sequence[Mutant], jobs: int) -> Iterator[tuple[Mutant, bool]]:
    """Yield every mutant with whether a test noticed it, as soon as that is known."""
    left, running = list(reversed(chosen)), dict[int, tuple[Mutant, float]]()
    while left or running:
        while left and len(running) < jobs:
            mutant = left.pop()
            running[start(mutant)] = mutant, time.monotonic()
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in running:
            _end(pid)
            yield running.pop(pid)[0], status != 0
            continue
        for late, (_, begun) in running.items():
            if time.monotonic() - begun > LIMIT_S:
                _end(late)
        time.sleep(0.02)


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=30, help="mutants of a file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", choices=TESTS, action="append", metavar="FILE")
    options = parser.parse_args()
    os.chdir(ROOT)
    for name in _HEAVY:
        importlib.import_module(name)
    files, dice = options.only or list(TESTS), random.Random(options.seed)
    whole = [Mutant(file, 0, "", ast.unparse(ast.parse((ROOT / file).read_text("utf-8")))) for file in files]
    if wrong := [mutant.file for mutant, is_noticed in run(whole, options.jobs) if is_noticed]:
        sys.exit(f"tests fail without any mistake: {', '.join(wrong)}")
    of_file = {file: list(mutants(file)) for file in files}
    chosen = [mutant for file in files for mutant in dice.sample(of_file[file], min(options.each, len(of_file[file])))]
    counts = {file: [0, 0] for file in files}
    for mutant, is_noticed in run(chosen, options.jobs):
        counts[mutant.file][0] += 1
        counts[mutant.file][1] += is_noticed
        if not is_noticed:
            print(f"unnoticed: {mutant.file}:{mutant.line}: {mutant.change}", flush=True)
    print("| file | of | tried | noticed |\n|---|---:|---:|---:|")
    for file, (tried, noticed) in counts.items():
        print(f"| {file} | {len(of_file[file])} | {tried} | {noticed} |")
    tried, noticed = (sum(column) for column in zip(*counts.values(), strict=True))
    print(f"| all | {sum(map(len, of_file.values()))} | {tried} | {noticed} ({noticed / tried:.1%}) |")
    return 0 if noticed >= LEAST_SHARE * tried else 1


if __name__ == "__main__":
    sys.exit(main())
