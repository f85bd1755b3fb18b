"""Steps on their way from rank 0 to the other ranks of a tensor split: told by one, done by all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qlocal.engine.leading_cache import LeadingCache, follow_read, follow_write
from qlocal.engine.model_runner import Between, ModelRunner
from qlocal.engine.team import LOST_CONTACT, Team, is_lost_contact
from qlocal.errors import EngineError
from qlocal.layers.card_draws import Draws
from qlocal.layers.paged_attention import TokenRun
from qlocal.layers.seat import Seat
from qlocal.parallel.collectives import Collectives
from qlocal.protocol import (
    HEADER,
    CopyBlock,
    Forward,
    Logits,
    Message,
    ReadBlock,
    Shutdown,
    WriteBlock,
    decode,
    encode,
)


class LeadingRunner:
    """Does what a ModelRunner does, together with all other ranks. On rank 0, which alone decides and samples.

    `cache` is the blocks of all ranks as one, whose heads stand in the model's order: whoever takes them over may be
    split otherwise, or not at all.
    """

    def __init__(self, runner: ModelRunner, seat: Seat, team: Team) -> None:
        self._runner = runner
        self._collectives = seat.collectives
        self._team = team
        self.cache = LeadingCache(runner.cache, seat, self._tell, team)

    def forward(
        self,
        input_ids: Sequence[int],
        runs: Sequence[TokenRun],
        between: Between | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """As ModelRunner's; a step that all ranks have begun is not ended half way."""
        with self._team.explaining():
            self._tell(Forward(list(input_ids), [[run.length, run.num_past, *run.blocks] for run in runs]))
            return self._runner.forward(input_ids, runs)

    def logits(self, rows: Sequence[int]) -> Tensor:
        with self._team.explaining():
            self._tell(Logits(list(rows)))
            return self._runner.logits(rows)

    def row_sums(self) -> Tensor:
        return self._runner.row_sums()

    def most_likely(self, rows: Sequence[int], num_tokens: int) -> list[int | None] | None:
        return None  # every rank has a part of the logits

    def can_draw(self, num_rows: int) -> bool:
        return False

    def drawn(self, rows: Sequence[int]) -> list[int | None] | None:
        return None

    def copy_block(self, source: int, target: int, num_tokens: int) -> None:
        with self._team.explaining():
            self._tell(CopyBlock(source, target, num_tokens))
        self._runner.copy_block(source, target, num_tokens)

    def close(self) -> None:
        """Let the other ranks end."""
        with self._team.explaining():
            self._tell(Shutdown())

    def _tell(self, message: Message) -> None:
        self._collectives.send(encode(message)[HEADER.size :])  # which tells its length itself


@torch.inference_mode()
def follow_steps(runner: ModelRunner, collectives: Collectives) -> None:
    """Do what rank 0 tells, until it says that there is no more. EngineError when a rank is gone."""
    try:
        while _does_step(decode(collectives.receive()), runner, collectives):
            pass
    except RuntimeError as error:
        if is_lost_contact(error):
            raise EngineError(LOST_CONTACT) from error
        raise


def _does_step(message: Message, runner: ModelRunner, collectives: Collectives) -> bool:
    """Do what a message says; return whether more will follow."""
    match message:
        case Forward():
            runner.forward(message.input_ids, [TokenRun(n, past, blocks) for n, past, *blocks in message.runs])
        case Logits():
            runner.logits(message.rows)
        case CopyBlock():
            runner.copy_block(message.source, message.target, message.num_tokens)
        case ReadBlock():
            follow_read(runner.cache, message.block, collectives)
        case WriteBlock():
            follow_write(runner.cache, message.block, collectives)
        case Shutdown():
            return False
        case _:
            raise EngineError(f"rank 0 sent a {type(message).__name__}, which it must not")
    return True
