"""Which sequences compute how many tokens in the next step. Continuous batching; prompts are read in chunks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from qlocal.cache.block_manager import BlockManager
from qlocal.engine.sequence import Sequence
from qlocal.engine.speculation.speculator import MAX_GUESS, Speculator


@dataclass(frozen=True)
class ScheduledRun:
    """`length` tokens of one sequence, from position `start`. `samples`: its last known token is among them. guess:
    tokens at their end that are not known yet, but checked in this step."""

    sequence: Sequence
    start: int
    length: int
    guess: list[int] = field(default_factory=list)

    @property
    def num_known(self) -> int:
        return self.length - len(self.guess)

    @property
    def samples(self) -> bool:
        return self.start + self.num_known == len(self.sequence.token_ids)

    @property
    def token_ids(self) -> list[int]:
        return self.sequence.token_ids[self.start : self.start + self.num_known] + self.guess


LONG_STEP_S, SHORT_STEP_S = 0.8, 0.3
"""A step between them is as long as it should be: cancelling waits for its end, and its overhead is small."""
LEAST_CHUNK = 256
"""Prompt tokens of a step: as fast as 512 on the 1.5B (1.5 s of processor time for 512 tokens), 128 take 1.4 times, 64
twice as long."""


class Scheduler:
    """First come, first served for admission; each step serves every running sequence.

    Decoding sequences get one token each, and their guesses while nobody reads a prompt; those that do share
    `prefill_chunk` tokens evenly, so that a short prompt does not wait for a long one; fewer where these take long.
    """

    def __init__(
        self, blocks: BlockManager, slots: int, prefill_chunk: int, speculator: Speculator | None = None
    ) -> None:
        self._speculator = speculator
        self._blocks = blocks
        self._slots = slots
        self._most_chunk = self._chunk = prefill_chunk
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def find(self, request_id: str) -> Sequence | None:
        """Return the waiting or running sequence of a request."""
        return next((s for s in (*self.running, *self.waiting) if s.request_id == request_id), None)

    def next_batch(self) -> list[ScheduledRun]:
        """Admit what fits, and return what to compute now; blocks for it are taken."""
        self._admit()
        decoding = [s for s in self.running if s.num_pending == 1]
        reading = [s for s in self.running if s.num_pending > 1]
        if self._speculator is not None and decoding and not reading:
            for sequence in decoding:  # a draft model computes behind the last token
                self._reach(sequence, len(sequence.token_ids) + min(MAX_GUESS, sequence.num_remaining - 1))
            self._speculator.guess(decoding)
        guesses = [[] if reading else s.guesser.tried for s in decoding]
        batch = [ScheduledRun(s, s.num_computed, 1 + len(g), g) for s, g in zip(decoding, guesses, strict=True)]
        batch += self._prefill_runs(reading)
        for run in batch:
            self._reach(run.sequence, run.start + run.length)
        return batch

    def _reach(self, sequence: Sequence, num_tokens: int) -> None:
        assert sequence.table is not None, "running sequences were admitted"
        self._blocks.reach(sequence.table, num_tokens)

    def commit(self, batch: list[ScheduledRun]) -> None:
        """Note that the tokens of `batch` are computed; of guesses the caller says which were right."""
        for run in batch:
            sequence = run.sequence
            assert sequence.table is not None, "running sequences were admitted"
            sequence.num_computed = run.start + run.num_known
            self._blocks.commit(sequence.table, sequence.token_ids, sequence.num_computed)

    def note_step(self, batch: list[ScheduledRun], seconds: float) -> None:
        """Count what a step took: nobody waits much longer than LONG_STEP_S for one that reads a prompt to end."""
        num_read = sum(run.length for run in batch if run.length > 1 + len(run.guess))
        if seconds > LONG_STEP_S and num_read > LEAST_CHUNK:
            self._chunk = max(LEAST_CHUNK, self._chunk // 2)
        elif seconds < SHORT_STEP_S and num_read >= self._chunk:
            self._chunk = min(self._most_chunk, self._chunk * 2)

    def finish(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Take a sequence out and give its blocks back. keep: its computed prefix may be reused."""
        if sequence.table is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        if keep:
            self._blocks.release(sequence.table, sequence.token_ids, sequence.num_computed)
        else:
            self._blocks.discard(sequence.table)
        sequence.table = None

    def _admit(self) -> None:
        # Strictly in order: a long request that waits for room is not overtaken for ever by short ones.
        while self.waiting and len(self.running) < self._slots:
            sequence = self.waiting[0]
            request = sequence.request
            begun = time.perf_counter()  # what is restored is a part of reading the prompt
            # What is scored must be computed, and so must the token before it, whose logits score it.
            usable = None if request.scored_from is None else request.scored_from - 1
            admitted = self._blocks.admit(request.input_ids, request.max_tokens, usable)
            if admitted is None:
                return
            sequence.table, sequence.num_cached = admitted
            sequence.num_computed, sequence.num_restored = sequence.num_cached, sequence.table.num_restored
            sequence.admitted_at = begun
            self.running.append(self.waiting.popleft())

    def _prefill_runs(self, sequences: list[Sequence]) -> Iterator[ScheduledRun]:
        """Share the chunk evenly; what short prompts leave over goes to the longer ones."""
        room = self._chunk
        by_need = sorted(sequences, key=lambda s: s.num_pending)
        for index, sequence in enumerate(by_need):
            share = max(room // (len(by_need) - index), 1)
            length = min(sequence.num_pending, share)
            room -= length
            yield ScheduledRun(sequence, sequence.num_computed, length)
