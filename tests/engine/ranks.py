"""Ranks in processes that tests share: each loads its part of one model after another, by the engine's own code.

`python -m tests.engine.ranks STORE RANK` is one of the processes; rank 0 is the test itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from qlocal.engine.model_runner import ModelRunner
from qlocal.engine.relay import LeadingRunner, follow_steps
from qlocal.engine.team import Team
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.layers.kv_conditioning import storage_for
from qlocal.layers.loader import load_model
from qlocal.layers.paged_attention import TokenRun
from qlocal.layers.precision import compute_dtype
from qlocal.layers.seat import Seat
from qlocal.parallel.collectives import Collectives
from qlocal.parallel.rendezvous import Meeting, join, leave
from qlocal.plan import Plan, make_plan
from qlocal.tensor_split import shares

SIZES = (2, 3, 4)
ROOT = Path(__file__).resolve().parents[2]


class Ranks:
    """Four ranks, of which the first 2, 3 or 4 hold a model together."""

    def __init__(self, folder: Path) -> None:
        self._meeting = Meeting(path=str(folder / "store"))
        command = [sys.executable, "-m", "tests.engine.ranks", str(folder / "store")]
        self._processes = [subprocess.Popen([*command, str(rank)], cwd=ROOT) for rank in range(1, max(SIZES))]
        self._groups = _meet(self._meeting, 0)
        self._all = Collectives(self._groups[max(SIZES)], torch.float32)

    def load(self, path: Path, plan: Plan) -> tuple[LeadingRunner, Collectives]:
        """Have all ranks of `plan` load their parts; return rank 0's way to run them, and what counts its traffic."""
        self._all.send(json.dumps({"path": str(path), "plan": plan.to_json()}).encode())
        return _part(path, plan, self._groups)

    def end(self) -> None:
        self._all.send(b"null")
        for process in self._processes:
            assert process.wait(timeout=30) == 0
        leave()


def one_device(path: Path, **choices: Any) -> ModelRunner:
    """Return the whole model on one device, computed by the same layers."""
    return layer_split(path, 1, **choices)


def layer_split(path: Path, num_devices: int, **choices: Any) -> ModelRunner:
    """Return a model whose layers are divided over devices."""
    checkpoint = open_checkpoint(path)
    plan = make_plan(checkpoint, ["cpu"] * num_devices, **{"dtype": "float32", "block_size": 16, "slots": 1, **choices})
    with torch.inference_mode():
        decoder = load_model(checkpoint, plan)
    return ModelRunner(decoder, storage_for(decoder, plan), plan.block_size)


def tensor_plan(path: Path, num_ranks: int, **choices: Any) -> Plan:
    choices = {"dtype": "float32", "block_size": 16, "slots": 1, "split": "tensor", **choices}
    return make_plan(open_checkpoint(path), ["cpu"] * num_ranks, **choices)


@torch.inference_mode()
def run_greedily(
    runner: ModelRunner | LeadingRunner, prompt: Sequence[int], num_tokens: int
) -> tuple[Tensor, list[int]]:
    """Return the logits of every token of a prompt, read in two chunks, and of the greedy answer; and the answer."""
    blocks, half, ids = list(range(8)), len(prompt) // 2, list(prompt)
    logits = []
    for start, stop in ((0, half), (half, len(prompt))):
        runner.forward(prompt[start:stop], [TokenRun(stop - start, start, blocks)])
        logits.append(runner.logits(range(stop - start)))
    for _ in range(num_tokens):
        ids.append(int(logits[-1][-1].argmax()))
        runner.forward(ids[-1:], [TokenRun(1, len(ids) - 1, blocks)])
        logits.append(runner.logits([0]))
    return torch.cat(logits), ids[len(prompt) :]


def _meet(meeting: Meeting, rank: int) -> dict[int, dist.ProcessGroup]:
    torch.set_num_threads(1)
    world = join(meeting, meeting.open(hosts=False), rank, max(SIZES), ["cpu"])
    return {size: world if size == max(SIZES) else dist.new_group(list(range(size))) for size in SIZES}


@torch.inference_mode()
def _part(path: Path, plan: Plan, groups: dict[int, dist.ProcessGroup]) -> Any:
    checkpoint = open_checkpoint(path)
    collectives = Collectives(groups[len(plan.devices)], compute_dtype(plan.dtype))
    seat = Seat(shares(checkpoint, plan.rank_weights), collectives)
    decoder = load_model(checkpoint, plan, seat=seat)
    runner = ModelRunner(decoder, storage_for(decoder, plan), plan.block_size, is_whole=False)
    return (runner if collectives.rank else LeadingRunner(runner, seat, Team([]))), collectives


def main(path: str, rank: int) -> None:
    groups = _meet(Meeting(path=path), rank)
    everyone = Collectives(groups[max(SIZES)], torch.float32)
    while (task := json.loads(everyone.receive())) is not None:
        plan = Plan.from_json(task["plan"])
        if rank < len(plan.devices):
            follow_steps(*_part(Path(task["path"]), plan, groups))
    leave()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
