"""Ranks of a tensor split whose layers are on cards, the CPU standing in for these: `python -m tests.engine.card_ranks
MODEL STORE RANK RANKS`. Rank 0 prints what it saw as JSON: how far its logits are from one device's, and the counts."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from qlocal.endings import leave_process

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
NUM_TOKENS = 5
CHOICES = {"dtype": "float32", "block_size": 32, "slots": 1, "kv": "f16", "max_context": 256}


class Remembering:
    """Records as a card does: nothing is computed but by a replay, and always into the same tensors."""

    replayed = 0

    def record(self, work: Callable[[], Any]) -> Any:
        from qlocal.layers.recording import Recorded

        result = SimpleNamespace()

        def replay() -> None:
            Remembering.replayed += 1
            for name, value in vars(work()).items():
                if hasattr(result, name) and value is not None:
                    getattr(result, name).copy_(value)
                else:
                    setattr(result, name, value)

        return Recorded(replay, result)


def main(model: str, store: str, rank: int, ranks: int) -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    from qlocal.kernels import dispatch
    from qlocal.layers import card_decoder
    from tests.engine.ranks import one_device, run_greedily

    path = Path(model)
    alone, text = run_greedily(one_device(path, **CHOICES), PROMPT, NUM_TOKENS) if rank == 0 else (None, None)
    dispatch._is_card = lambda device: True
    dispatch._missing_for_triton = lambda: None
    torch.cuda.get_device_capability = lambda device=None: (8, 6)  # type: ignore[assignment]
    card_decoder._cuda_recorder = lambda device: Remembering()  # type: ignore[assignment]
    runner, collectives, exchange = _part(path, store, rank, ranks)
    if rank == 0:
        before, first_turn = collectives.traffic.all_reduces, int(exchange.mailbox.turns[0])
        logits, answer = run_greedily(runner, PROMPT, NUM_TOKENS)
        runner.close()
        assert alone is not None
        seen = {
            "apart": float((logits - alone).abs().max()),
            "is_same_text": answer == text,
            "all_reduces": collectives.traffic.all_reduces - before,
            "replayed": Remembering.replayed,
            "exchanges": int(exchange.mailbox.turns[0]) - first_turn,
        }
        print(json.dumps(seen))


@torch.inference_mode()
def _part(path: Path, store: str, rank: int, ranks: int) -> Any:
    from qlocal.engine.model_runner import ModelRunner
    from qlocal.engine.relay import LeadingRunner, follow_steps
    from qlocal.engine.team import Team
    from qlocal.formats.checkpoint import open_checkpoint
    from qlocal.layers.kv_conditioning import storage_for
    from qlocal.layers.loader import load_model
    from qlocal.layers.precision import compute_dtype
    from qlocal.layers.seat import Seat
    from qlocal.parallel.collectives import Collectives
    from qlocal.parallel.host_exchange import open_exchange
    from qlocal.parallel.rendezvous import Meeting, join
    from qlocal.tensor_split import shares
    from tests.engine.ranks import tensor_plan

    checkpoint, plan = open_checkpoint(path), tensor_plan(path, ranks, **CHOICES)
    meeting = Meeting(path=store)
    group = join(meeting, meeting.open(hosts=False), rank, ranks, ["cpu"])
    collectives = Collectives(group, compute_dtype(plan.dtype))
    exchange = open_exchange(collectives, torch.device("cpu"), checkpoint.config.hidden_size)
    decoder = load_model(checkpoint, plan, seat=Seat(shares(checkpoint, plan.rank_weights), collectives, exchange))
    runner = ModelRunner(decoder, storage_for(decoder, plan), plan.block_size, is_whole=False)
    if rank == 0:
        return LeadingRunner(runner, collectives, Team([])), collectives, exchange
    follow_steps(runner, collectives)
    return None, None, None


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    leave_process(0)
