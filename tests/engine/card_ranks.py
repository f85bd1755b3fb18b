"""Ranks of a tensor split whose layers are on cards, the CPU standing in for these: `python -m tests.engine.card_ranks
MODEL STORE RANK RANKS`. Rank 0 prints what it saw as JSON: how far its logits are from one device's, and the counts;
then of a prompt that is read in halves."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from qlocal.endings import leave_process

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
LONG_PROMPT = [i * 7 % 90 for i in range(68)]
"""Read in two steps of 34, of which a half is beyond what the exchange takes."""
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


class Watched:
    """Counts how many sums are under way, whenever one has begun or has been waited for."""

    under_way: ClassVar[list[int]] = []

    def __init__(self, start: Any) -> None:
        self._start = start

    def __call__(self, part: Any) -> Any:
        finish, now = self._start(part), self.under_way
        now.append((now[-1] if now else 0) + 1)

        def watched() -> Any:
            now.append(now[-1] - 1)
            return finish()

        return watched


def main(model: str, store: str, rank: int, ranks: int) -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    from qlocal.kernels import dispatch
    from qlocal.layers import card_decoder
    from tests.engine.ranks import one_device, run_greedily

    path = Path(model)
    alone, text = run_greedily(one_device(path, **CHOICES), PROMPT, NUM_TOKENS) if rank == 0 else (None, None)
    long_alone = run_greedily(one_device(path, **CHOICES), LONG_PROMPT, 0)[0] if rank == 0 else None
    card_decoder.PART_TOKENS = 17
    dispatch._is_card = lambda device: True
    dispatch._missing_for_triton = lambda: None
    torch.cuda.get_device_capability = lambda device=None: (8, 6)  # type: ignore[assignment]
    card_decoder._cuda_recorder = lambda device: Remembering()  # type: ignore[assignment]
    runner, collectives, exchange = _part(path, store, rank, ranks)
    if rank == 0:
        before, first_turn = collectives.traffic.all_reduces, int(exchange.mailbox.turns[0])
        logits, answer = run_greedily(runner, PROMPT, NUM_TOKENS)
        all_reduces = collectives.traffic.all_reduces - before
        exchanges = int(exchange.mailbox.turns[0]) - first_turn
        long_logits, _ = run_greedily(runner, LONG_PROMPT, 0)
        runner.close()
        assert alone is not None and long_alone is not None
        seen = {
            "apart": float((logits - alone).abs().max()),
            "is_same_text": answer == text,
            "all_reduces": all_reduces,
            "replayed": Remembering.replayed,
            "exchanges": exchanges,
            "long_apart": float((long_logits - long_alone).abs().max()),
            "long_all_reduces": collectives.traffic.all_reduces - before - all_reduces,
            "under_way": Watched.under_way,
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
    collectives.start_adding_up = Watched(collectives.start_adding_up)  # type: ignore[method-assign]
    exchange = open_exchange(collectives, torch.device("cpu"), checkpoint.config.hidden_size)
    seat = Seat(shares(checkpoint, plan.rank_weights), collectives, exchange)
    decoder = load_model(checkpoint, plan, seat=seat)
    runner = ModelRunner(decoder, storage_for(decoder, plan), plan.block_size, is_whole=False)
    if rank == 0:
        return LeadingRunner(runner, seat, Team([])), collectives, exchange
    follow_steps(runner, collectives)
    return None, None, None


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    leave_process(0)
