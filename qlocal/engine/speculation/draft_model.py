"""A small model of the family that guesses. Its cache has the blocks of the large model's, so it reuses what that does.

It reads what it has not read yet only when it is asked: while it does not pay, it costs nothing.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from qlocal.engine.model_runner import ModelRunner
from qlocal.engine.sequence import Sequence as Running
from qlocal.engine.speculation.pace import MAX_STEP_TOKENS
from qlocal.layers.paged_attention import TokenRun

_NUM_TIMES = 9
"""Of the latest guessed tokens, whose median is what one takes: the first ones touch memory that nobody has."""


class DraftModel:
    """Guesses the most likely next tokens of sequences."""

    def __init__(
        self, runner: ModelRunner, num_blocks: int, block_size: int, vocab_size: int, max_context: int, chunk: int
    ) -> None:
        """vocab_size: its own, which may have fewer or more rows than the large model's. max_context: what it was made
        for. chunk: most tokens that it reads at once."""
        self._runner = runner
        self._block_size = block_size
        self._vocab_size = vocab_size
        self._max_context = max_context
        self._chunk = chunk
        self._num_filled = [0] * num_blocks  # tokens of every block that are in this cache as well
        self._times: deque[float] = deque(maxlen=_NUM_TIMES)

    @property
    def token_s(self) -> float | None:
        """Seconds that a guessed token takes, for all sequences at once; None before it was measured."""
        return statistics.median(self._times) if self._times else None

    def forget(self, block: int) -> None:
        """Note that a block gets new content."""
        self._num_filled[block] = 0

    def copy_block(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first tokens of a block to another."""
        self._runner.copy_block(source, target, num_tokens)
        self._num_filled[target] = min(self._num_filled[source], num_tokens)

    def can_guess(self, sequence: Running) -> bool:
        """Whether this model knows all tokens and has room for them."""
        fits = len(sequence.token_ids) + MAX_STEP_TOKENS <= self._max_context
        return fits and max(sequence.token_ids[self._num_read(sequence) :]) < self._vocab_size

    def guess(self, asked: Sequence[tuple[Running, int]]) -> list[list[int]]:
        """Return so many tokens for every sequence, or none while one is still being read. Blocks are taken already."""
        guesses: list[list[int]] = [[] for _ in asked]
        going = [index for index, (sequence, _) in enumerate(asked) if self._catch_up(sequence)]
        while going := [index for index in going if len(guesses[index]) < asked[index][1]]:
            begun = time.perf_counter()
            runs = [self._run(asked[index][0], guesses[index]) for index in going]
            ids, described = [i for token_ids, _ in runs for i in token_ids], [run for _, run in runs]
            for index, token_id in zip(going, self._most_likely(ids, described, asked, going), strict=True):
                guesses[index].append(token_id)
            self._times.append(time.perf_counter() - begun)
        return guesses

    def keep(self, sequence: Running) -> None:
        """Forget what was guessed wrong: everything behind the tokens of the sequence but its last."""
        assert sequence.table is not None, "what runs has blocks"
        valid = len(sequence.token_ids) - 1
        for index in range(valid // self._block_size, len(sequence.table.blocks)):
            block, kept = sequence.table.blocks[index], max(valid - index * self._block_size, 0)
            self._num_filled[block] = min(self._num_filled[block], kept)

    def _most_likely(
        self, ids: list[int], runs: list[TokenRun], asked: Sequence[tuple[Running, int]], going: Sequence[int]
    ) -> list[int]:
        self._runner.forward(ids, runs)
        ends = torch.tensor([run.length for run in runs]).cumsum(0) - 1
        logits: Tensor = self._runner.logits(ends.tolist())  # (B, V) f32
        # Rows that stand for no token, or for none of the large model's, are no guesses.
        limits = [min(asked[index][0].request.num_tokens, self._vocab_size) for index in going]
        return [int(row[:limit].argmax()) for row, limit in zip(logits, limits, strict=True)]

    def _run(self, sequence: Running, guess: list[int]) -> tuple[list[int], TokenRun]:
        """Return what a sequence has computed next, and count it as read."""
        start = self._num_read(sequence)
        token_ids = (sequence.token_ids + guess)[start:]
        return token_ids, self._counted(sequence, start, len(token_ids))

    def _counted(self, sequence: Running, start: int, length: int) -> TokenRun:
        assert sequence.table is not None, "what runs has blocks"
        blocks, size = sequence.table.blocks, self._block_size
        for index in range(start // size, -(-(start + length) // size)):
            filled = min(size, start + length - index * size)
            self._num_filled[blocks[index]] = max(self._num_filled[blocks[index]], filled)
        return TokenRun(length, start, blocks)

    def _catch_up(self, sequence: Running) -> bool:
        """Read a chunk of what this model has not seen; return whether few enough tokens are left to guess now."""
        start = self._num_read(sequence)
        missing = len(sequence.token_ids) - start
        if missing > MAX_STEP_TOKENS:
            length = min(missing - 1, self._chunk)
            run = self._counted(sequence, start, length)
            self._runner.forward(sequence.token_ids[start : start + length], [run])
            missing -= length
        return missing <= MAX_STEP_TOKENS

    def _num_read(self, sequence: Running) -> int:
        """Return how many of the first tokens of a sequence are in this cache."""
        assert sequence.table is not None, "what runs has blocks"
        num_read = 0
        for block in sequence.table.blocks:
            num_read += self._num_filled[block]
            if self._num_filled[block] < self._block_size:
                break
        return num_read
