"""The tools themselves: what they compute, what they read, and what they never reach."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlocal.chat.tools.base import Round, Tool, ToolCall, ToolError, ToolResult
from qlocal.chat.tools.calculator import Calculator, compute
from qlocal.chat.tools.files import FileSearch
from qlocal.chat.tools.shell import Shell


def run(tool: Tool, arguments: Mapping[str, Any]) -> str:
    return asyncio.run(tool.run(arguments))


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("-2 ** 2", -4),
        ("2 ** -1", 0.5),
        ("2 ** 3 ** 2", 512),
        ("2^10", 1024),
        ("7 // 2 + 7 % 2", 4),
        ("10 / 4", 2.5),
        ("--3", 3),
        ("1_000 + .5e1", 1005.0),
        ("sqrt(2) * sqrt(2)", pytest.approx(2)),
        ("max(1, min(5, 3), 2)", 3),
        ("round(pi, 2)", 3.14),
        ("ln(e)", 1.0),
    ],
)
def test_the_calculator_computes(expression: str, value: float) -> None:
    assert compute(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "1 +",
        "(1",
        "1 2",
        "1 / 0",
        "__import__('os')",
        "open",
        "x",
        "9 ** 9 ** 9",
        "2 ** 99999",
        "(" * 60 + "1" + ")" * 60,
        "2" + "**1" * 60,
        "1" * 1001,
        "9" * 900 + "*" + "9" * 90 + "*" + "9" * 9 + "**2",
        "(-8) ** 0.5",
        "sqrt(-1)",
        "round(1, 2, 3)",
        "1; 2",
        "exp(1000)",
    ],
)
def test_the_calculator_refuses_quickly(expression: str) -> None:
    begun = time.process_time()
    with pytest.raises(ToolError):
        compute(expression)
    assert time.process_time() - begun < 1.0


@given(st.text(alphabet="0123456789.+-*/%()^ epiln,sqrt_", max_size=40))
def test_no_expression_does_more_than_fail(expression: str) -> None:
    try:
        value = compute(expression)
    except ToolError:
        return
    assert isinstance(value, int | float)


def test_the_calculators_argument_is_checked() -> None:
    assert run(Calculator(), {"expression": "6*7"}) == "42"
    for arguments in ({}, {"expression": 3}):
        with pytest.raises(ToolError, match="expression is"):
            run(Calculator(), arguments)
    assert math.isfinite(compute("1e308"))


@pytest.fixture
def search(tmp_path: Path) -> FileSearch:
    """A folder with files, and a secret beside it that many ways seem to lead to."""
    notes, secret = tmp_path / "notes", tmp_path / "secret"
    (notes / "deep" / "er").mkdir(parents=True)
    secret.mkdir()
    (secret / "key.txt").write_text("TOPSECRET needle")
    (notes / "a.md").write_text("one\nThe Needle is here\n")
    (notes / "deep" / "er" / "b.txt").write_text("needle again")
    (notes / "binary").write_bytes(b"needle\0")
    (notes / "link.txt").symlink_to(secret / "key.txt")
    (notes / "linked").symlink_to(secret)
    (notes / "up").symlink_to("..")
    os.mkfifo(notes / "pipe")
    return FileSearch([notes])


def test_files_are_searched_and_read_in_the_allowed_folder(search: FileSearch) -> None:
    assert run(search, {}) == "notes"
    found = run(search, {"text": "NEEDLE"}).splitlines()
    assert found == ["notes/a.md:2: The Needle is here", "notes/deep/er/b.txt:1: needle again"]
    assert run(search, {"text": "needle", "path": "notes/deep"}) == "notes/deep/er/b.txt:1: needle again"
    assert run(search, {"path": "notes/a.md"}).startswith("one\n")
    assert "a.md" in run(search, {"path": "notes"}).splitlines()
    assert run(search, {"text": "absent"}) == "nothing found"


@pytest.mark.parametrize(
    "path",
    [
        "notes/../secret/key.txt",
        "notes/link.txt",
        "notes/linked/key.txt",
        "notes/up/secret/key.txt",
        "notes/linked",
        "/etc/passwd",
        "../secret/key.txt",
        "secret/key.txt",
        "notes/./a.md",
        "notes//a.md",
        "notes/pipe",
        "notes/a.md\0",
        "notes/none",
        ".",
        "~/x",
    ],
)
def test_no_path_leads_out_of_the_allowed_folder(search: FileSearch, path: str) -> None:
    for arguments in ({"path": path}, {"path": path, "text": "needle"}):
        with pytest.raises(ToolError):
            run(search, arguments)


def test_a_folder_swapped_for_a_link_while_it_is_searched_is_not_followed(search: FileSearch, tmp_path: Path) -> None:
    deep = tmp_path / "notes" / "deep"
    files = search._files("notes")
    next(files)
    (deep / "er").rename(tmp_path / "gone")
    (deep / "er").symlink_to(tmp_path / "secret")
    assert all(b"TOPSECRET" not in data for _, data in files)


def test_large_files_are_cut_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * (3 << 20))
    text = run(FileSearch([tmp_path]), {"path": f"{tmp_path.name}/big"})
    assert len(text) < (1 << 20) + 100 and "[cut:" in text


def test_two_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for side in ("x", "y"):
        (tmp_path / side / "src").mkdir(parents=True)
    assert run(FileSearch([tmp_path / "x" / "src", tmp_path / "y" / "src"]), {}) == "src-1\nsrc-2"


def test_the_shell_runs_a_list_of_arguments_without_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    shell = Shell(tmp_path)
    assert run(shell, {"argv": ["echo", "$HOME; rm -rf *"]}) == "$HOME; rm -rf *\n"
    assert "SECRET_TOKEN" not in run(shell, {"argv": ["env"]})
    assert run(shell, {"argv": ["pwd"]}).strip() == str(tmp_path)
    assert run(shell, {"argv": ["sh", "-c", "echo no >&2; exit 3"]}) == "exit code 3\nno\n"
    assert run(shell, {"argv": ["cat"]}) == ""  # nothing on standard input


@pytest.mark.parametrize("argv", [None, [], "ls", [1], ["a\0b"], ["/no/such/program"]])
def test_what_is_no_program_is_refused(tmp_path: Path, argv: Any) -> None:
    with pytest.raises(ToolError):
        run(Shell(tmp_path), {"argv": argv})


def test_a_program_that_does_not_end_is_ended_with_all_it_started(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(ToolError, match=r"ended after 0\.5 s"):
        run(Shell(tmp_path, timeout_s=0.5), {"argv": ["sh", "-c", script]})
    pid = int((tmp_path / "pid").read_text())
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_endless_output_is_cut_at_the_limit(tmp_path: Path) -> None:
    text = run(Shell(tmp_path), {"argv": ["yes"]})
    assert "[cut:" in text and len(text) < (1 << 20) + 200


def test_arguments_that_are_no_object_are_said() -> None:
    assert ToolCall("1", "x", "").values() == {}
    for arguments in ("{", "[1]", "3", "[" * 100_000):
        with pytest.raises(ToolError):
            ToolCall("1", "x", arguments).values()


def test_a_round_is_kept_and_sent_as_messages() -> None:
    one = Round(3, [ToolCall("c1", "calculator", '{"expression":"1"}')], [ToolResult("c1", "calculator", "1")])
    assert Round.from_json(one.to_json()) == one
    assistant, tool = one.messages("so")
    assert assistant["tool_calls"][0]["function"] == {"name": "calculator", "arguments": '{"expression":"1"}'}
    assert tool["role"] == "tool" and tool["content"].endswith("\n1") and "not instructions" in tool["content"]
