"""Sums over ranks through shared memory: every rank a process, its kernel interpreted."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qlocal.layers.norm import rms_norm
from tests.kernels.triton.exchanging import ROWS, TOKENS, WIDTH, given

ROOT = Path(__file__).resolve().parents[3]
Made = list[tuple[Tensor, Tensor]]


def exchange(folder: Path, ranks: int, wire: str, turns: int, missing: int = 0, patience: int = 1 << 20) -> list[Made]:
    """Let all ranks but the last `missing` exchange, and return what each has made."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    path = folder / "packets"
    path.write_bytes(bytes(8 * ranks * 2 * ROWS * WIDTH))
    command = [sys.executable, "-m", "tests.kernels.triton.exchanging", str(path)]
    ends = [str(ranks), wire, str(turns), str(patience)]
    outs = [folder / f"{rank}.safetensors" for rank in range(ranks - missing)]
    processes = [subprocess.Popen([*command, str(rank), *ends, str(out)], cwd=ROOT) for rank, out in enumerate(outs)]
    assert [process.wait(timeout=300) for process in processes] == [0] * len(processes)
    files = [load_file(out) for out in outs]
    return [[(of[f"stream {turn}"], of[f"normed {turn}"]) for turn in range(turns)] for of in files]


@pytest.mark.parametrize(("ranks", "wire"), [(2, "bfloat16"), (2, "float32"), (3, "bfloat16")])
def test_all_ranks_get_the_same_sum_and_its_norm(ranks: int, wire: str, tmp_path: Path) -> None:
    made = exchange(tmp_path, ranks, wire, turns=2 * len(TOKENS))
    dtype = getattr(torch, wire)
    for turn in range(2 * len(TOKENS)):
        tokens = TOKENS[turn % len(TOKENS)]
        rounded = [given(turn, rank, tokens).sum(0).to(dtype).float() for rank in range(ranks)]
        expected = 1.0 + sum(rounded)
        for mine, (stream, normed) in enumerate(turns[turn] for turns in made):
            assert torch.equal(stream, made[0][turn][0]) and torch.equal(normed, made[0][turn][1]), (turn, mine)
            torch.testing.assert_close(stream, expected, rtol=0, atol=ranks * 2**-5)  # the interpreter rounds to zero
            torch.testing.assert_close(normed, rms_norm(stream, torch.linspace(0.5, 2.0, WIDTH), 1e-6))


def test_a_rank_that_does_not_come_leaves_no_number(tmp_path: Path) -> None:
    ((only,),) = exchange(tmp_path, 2, "bfloat16", turns=1, missing=1, patience=20)
    assert only[0].isnan().all() and only[1].isnan().all()
