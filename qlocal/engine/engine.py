"""The engine: requests in, messages out, one step at a time. Knows no process, socket or text."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from itertools import accumulate, islice

import torch
from torch import Tensor

from qlocal.cache.block_manager import BlockManager
from qlocal.engine.constraint import Constraint, Grammars
from qlocal.engine.drawing import choices_of, draws_of
from qlocal.engine.giving_up import InVain, between_layers
from qlocal.engine.keeping import Keeper
from qlocal.engine.model_runner import Between, ModelRunner
from qlocal.engine.relay import LeadingRunner
from qlocal.engine.requests import refusal
from qlocal.engine.sampler import Choice, likeliest_run, sample_run
from qlocal.engine.scheduler import ScheduledRun, Scheduler
from qlocal.engine.scoring import score_prompt
from qlocal.engine.sequence import Sequence
from qlocal.engine.speculation.speculator import Speculator
from qlocal.engine.team import Team
from qlocal.errors import GrammarError, SessionError
from qlocal.layers.card_draws import Draws
from qlocal.layers.paged_attention import TokenRun
from qlocal.plan import Plan
from qlocal.protocol import (
    FindSession,
    Finished,
    Message,
    Queued,
    Reading,
    Ready,
    SaveSession,
    Session,
    Started,
    Submit,
    Tokens,
    Vocabulary,
)

Placed = tuple[ScheduledRun, int]
"""A run, and the row of the step's hidden states where its tokens begin."""


class Engine:
    """One loaded model that serves up to `plan.slots` sequences at once."""

    def __init__(
        self,
        runner: ModelRunner | LeadingRunner,
        plan: Plan,
        ready: Ready,
        vocab_size: int,
        origin: Mapping[str, str],
        *,
        team: Team | None = None,
        speculator: Speculator | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        """origin: what the cache's content depends on, as `keeping.made_by` returns it. team: the other ranks of a
        tensor split, which end with this. speculator: who guesses next tokens, None for nobody. keeper: of blocks
        beside the cache, None where none are kept."""
        self._runner = runner
        self._team = team or Team([])
        self._keeper = keeper
        self._speculator = speculator
        self._blocks = BlockManager(
            plan.num_blocks,
            plan.block_size,
            repr(sorted(origin.items())),
            self._copy_block,
            self._forget_block,
            None if keeper is None else keeper.tier,
        )
        self._scheduler = Scheduler(self._blocks, plan.slots, plan.prefill_chunk, self._speculator)
        self.vocab_size = vocab_size
        self._max_context = plan.max_context
        self._draws: Draws | None = None
        """How the device draws the tokens of the step, None where it does not."""
        self._outbox: list[Message] = []
        self._grammars: Grammars | None = None
        self.ready = ready

    @property
    def rank_sockets(self) -> list[socket.socket]:
        """What becomes readable when `check_ranks` has something to say."""
        return self._team.sockets

    def check_ranks(self) -> None:
        """Raise EngineError with the reason when a rank of this machine has ended."""
        self._team.check()

    @property
    def has_unkept(self) -> bool:
        """Whether conversations may be written to disk, with nobody waiting."""
        return self._keeper is not None and self._keeper.has_unkept and not self.has_work

    def keep_next(self) -> None:
        """Write one block of a conversation to disk."""
        assert self._keeper is not None, "the caller asks whether there is something"
        self._keeper.keep_next(self._blocks)

    def keep_all(self, within_s: float) -> None:
        """Write what is not on disk yet, for at most so long."""
        if self._keeper is not None:
            self._keeper.keep_all(self._blocks, within_s)

    def close(self) -> None:
        """End the other ranks. An engine without any needs no closing."""
        if isinstance(self._runner, LeadingRunner):
            try:
                self._runner.close()
            finally:
                self._team.leave()

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to say."""
        return self._scheduler.has_work or bool(self._outbox)

    def usage(self) -> Usage:
        """Return what is in use now."""
        scheduler, blocks = self._scheduler, self._blocks
        return Usage(len(scheduler.running), len(scheduler.waiting), blocks.num_free, blocks.num_blocks)

    def cached_tokens(self, input_ids: list[int]) -> int:
        """Return how many tokens of a prompt would not be computed again if it came now."""
        return self._blocks.held(input_ids)

    def save_session(self, message: SaveSession) -> Session:
        """Keep a prompt's blocks under a name, or some more of them."""
        try:
            if any(not 0 <= token_id < self.vocab_size for token_id in message.input_ids):
                raise SessionError(f"'{message.name}' has tokens that the model has not")
            saved, total = self._needed_keeper().save(self._blocks, message.name, message.model, message.input_ids)
        except SessionError as error:
            return Session(message.nonce, error=error.message, hint=error.hint)
        return Session(message.nonce, saved, total)

    def find_session(self, message: FindSession) -> Session:
        """Tell the tokens of a session that was saved with this model and these options."""
        try:
            return Session(message.nonce, token_ids=self._needed_keeper().saved(self._blocks, message.name))
        except SessionError as error:
            return Session(message.nonce, error=error.message, hint=error.hint)

    def _needed_keeper(self) -> Keeper:
        assert self._keeper is not None, "an engine that serves has one"
        return self._keeper

    def submit(self, request: Submit) -> None:
        """Queue a request. One that cannot be run is answered by a `Finished` with reason `error`."""
        message = refusal(request, self._max_context, self.vocab_size)
        if message is None and self._scheduler.find(request.request_id) is not None:
            message = f"request '{request.request_id}' is running already"
        if message is not None:
            self._outbox.append(Finished(request.request_id, "error", 0, 0.0, message))
            return
        try:
            constraint = self._constraint(request)
        except GrammarError as error:
            self._outbox.append(Finished(request.request_id, "refused", 0, 0.0, str(error)))
            return
        self._scheduler.waiting.append(Sequence.of(request, constraint))

    def take_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Learn what the tokens say; requests with a grammar need it."""
        self._grammars = Grammars(vocabulary)

    def _constraint(self, request: Submit) -> Constraint | None:
        if request.grammar is None:
            return None
        if self._grammars is None:
            raise GrammarError("the vocabulary is not known, so no grammar can be followed")
        begun = request.input_ids[len(request.input_ids) - request.num_begun :]
        return self._grammars.constraint(request.grammar, request.stop_ids, request.num_tokens, begun)

    def cancel(self, request_id: str) -> None:
        """Stop a request and free its slot and blocks. One that has finished already is left alone."""
        sequence = self._scheduler.find(request_id)
        if sequence is not None:
            self._finish(sequence, "cancelled")

    @torch.inference_mode()
    def step(self, given_up: Callable[[], Container[str]] | None = None) -> list[Message]:
        """Compute one batch, and return what there is to say about it.

        given_up: tells which requests were cancelled meanwhile. A step that reads prompts of such requests alone ends
        half way, and nothing of it is remembered; then they are to be cancelled.
        """
        batch = self._scheduler.next_batch()
        self._tell_queue()
        if batch:
            if self._keeper is not None:
                self._keeper.note_work()
            begun = time.perf_counter()
            try:
                placed = self._compute(batch, between_layers(batch, given_up))
            except InVain:
                messages, self._outbox = self._outbox, []
                return messages
            placed = self._score_prompts(placed)
            choices = self._sample(placed)
            self._note_step(batch, time.perf_counter() - begun)
            self._scheduler.note_step(batch, time.perf_counter() - begun)
            kept = [run for run, _ in placed]
            self._scheduler.commit(kept)
            self._tell_reading(kept)
            for run, chosen in choices:
                self._advance(run, chosen)
            self._finish_scored(kept)
        messages, self._outbox = self._outbox, []
        return messages

    def _compute(self, batch: list[ScheduledRun], between: Between | None) -> list[Placed]:
        """Run the layers over a batch. Sequences whose hidden states are not finite end, before their keys and values
        are remembered; the others are returned."""
        runs = []
        for run in batch:
            assert run.sequence.table is not None, "the scheduler gave it blocks"
            runs.append(TokenRun(run.length, run.start, run.sequence.table.blocks))
        input_ids = [i for run in batch for i in run.token_ids]
        self._draws = draws_of(batch) if self._runner.can_draw(len(input_ids)) else None
        self._runner.forward(input_ids, runs, between, self._draws)
        row_sums = self._runner.row_sums()  # (T,) f32
        ends = accumulate(run.length for run in batch)
        placed = [(run, end - run.length) for run, end in zip(batch, ends, strict=True)]
        if _is_finite(row_sums):
            return placed
        kept = []
        for run, first_row in placed:
            if _is_finite(row_sums[first_row : first_row + run.length]):
                kept.append((run, first_row))
            else:
                self._fail(run.sequence)
        return kept

    def _score_prompts(self, placed: list[Placed]) -> list[Placed]:
        """Collect the log probabilities of prompt tokens for the requests that ask for them. One whose file cannot be
        read or written ends; the others are returned."""
        kept = []
        for run, first_row in placed:
            try:
                score_prompt(run, self._runner, first_row)
                kept.append((run, first_row))
            except OSError as error:
                self._finish(run.sequence, "error", f"the reference distributions cannot be used: {error}")
        return kept

    def _sample(self, placed: list[Placed]) -> list[tuple[ScheduledRun, list[Choice | None]]]:
        """Choose tokens for every sequence whose last known token was computed: one, and those that were guessed right;
        None where that failed.

        The head computes only the rows that are sampled.
        """
        sampled: list[ScheduledRun] = []
        rows: list[int] = []
        for run, first_row in placed:
            if run.samples:
                self._start(run.sequence)
                if run.sequence.request.max_tokens == 0:
                    continue
                sampled.append(run)
                rows += range(first_row + run.num_known - 1, first_row + run.length)
        if not sampled:
            return []
        counts = [1 + len(run.guess) for run in sampled]
        chosen = self._drawn(sampled, rows) if self._draws else self._likeliest(sampled, rows, counts)
        if chosen is None:
            of_runs = torch.split(self._runner.logits(rows), counts)  # (1 + guessed, V) f32 each
            chosen = [sample_run(x, r.sequence.sampling, r.guess) for r, x in zip(sampled, of_runs, strict=True)]
        return list(zip(sampled, chosen, strict=True))

    def _drawn(self, sampled: list[ScheduledRun], rows: list[int]) -> list[list[Choice | None]] | None:
        """Take the tokens that the device has drawn, None where it left one open."""
        token_ids = self._runner.drawn(rows)
        return None if token_ids is None else choices_of(sampled, token_ids)

    def _likeliest(
        self, sampled: list[ScheduledRun], rows: list[int], counts: list[int]
    ) -> list[list[Choice | None]] | None:
        """Take the tokens that the device has found, where nobody wants more than the likeliest; None elsewhere."""
        states = [run.sequence.sampling for run in sampled]
        num_tokens = {state.num_tokens for state in states}
        if len(num_tokens) > 1 or not all(state.takes_likeliest for state in states):
            return None
        token_ids = self._runner.most_likely(rows, num_tokens.pop())
        if token_ids is None:
            return None
        of_runs = iter(token_ids)
        return [likeliest_run([*islice(of_runs, n)], run.guess) for run, n in zip(sampled, counts, strict=True)]

    def _note_step(self, batch: list[ScheduledRun], seconds: float) -> None:
        """Tell who guesses what a step took."""
        if self._speculator is None:
            return
        if all(run.num_known == 1 and run.samples for run in batch):
            self._speculator.note_step([(run.sequence, run.length) for run in batch], seconds)
        else:
            self._speculator.note_prompt()

    def _start(self, sequence: Sequence) -> None:
        """Report that the prompt has been read, once."""
        if sequence.has_started:
            return
        sequence.started_at = time.perf_counter()
        prefill_s = sequence.started_at - sequence.admitted_at
        self._outbox.append(
            Started(
                sequence.request_id,
                sequence.num_prompt_tokens,
                sequence.num_cached,
                prefill_s,
                sequence.prompt_logprobs,
                sequence.num_restored,
            )
        )

    def _advance(self, run: ScheduledRun, chosen: list[Choice | None]) -> None:
        """Append the chosen tokens, report them, and end the sequence when its last is among them."""
        sequence, request = run.sequence, run.sequence.request
        choices = [choice for choice in chosen if choice is not None]
        told: list[Choice] = []
        reason = "error" if len(choices) < len(chosen) else None
        for index, choice in enumerate(choices):
            sequence.token_ids.append(choice.token_id)
            # A token that was guessed has its keys and values already.
            sequence.num_computed += index < len(run.guess) and choice.token_id == run.guess[index]
            if choice.token_id in request.stop_ids:
                reason = "stop"
                break
            told.append(choice)
        if self._speculator is not None:
            self._speculator.judge(sequence, [choice.token_id for choice in choices])
        if told:
            logprobs = [choice.logprobs for choice in told if choice.logprobs is not None]
            self._outbox.append(Tokens(request.request_id, [choice.token_id for choice in told], logprobs))
        if reason is None and sequence.sampling.is_complete:
            reason = "stop"
        if reason == "error":
            self._fail(sequence)
        elif reason is not None or sequence.num_remaining == 0:
            self._finish(sequence, reason or "length")

    def _tell_queue(self) -> None:
        """Report the places of those that wait, where they are new."""
        for ahead, sequence in enumerate(self._scheduler.waiting):
            if sequence.told_ahead != ahead:
                sequence.told_ahead = ahead
                self._outbox.append(Queued(sequence.request_id, ahead))

    def _tell_reading(self, batch: list[ScheduledRun]) -> None:
        """Report how far prompts have been read that take several steps."""
        for run in batch:
            sequence = run.sequence
            if not run.samples:
                elapsed_s = time.perf_counter() - sequence.admitted_at
                self._outbox.append(
                    Reading(
                        sequence.request_id,
                        sequence.num_computed,
                        sequence.num_prompt_tokens,
                        sequence.num_cached,
                        elapsed_s,
                    )
                )

    def _copy_block(self, source: int, target: int, num_tokens: int) -> None:
        self._runner.copy_block(source, target, num_tokens)
        if self._speculator is not None:
            self._speculator.copy_block(source, target, num_tokens)

    def _forget_block(self, block: int) -> None:
        if self._speculator is not None:
            self._speculator.forget_block(block)

    def _finish_scored(self, batch: list[ScheduledRun]) -> None:
        """End the requests that wanted nothing but the log probabilities of their prompt."""
        for run in batch:
            if run.sequence.request.max_tokens == 0 and run.samples:
                self._finish(run.sequence, "length")

    def _fail(self, sequence: Sequence) -> None:
        if sequence.sampling.is_stuck:
            self._finish(sequence, "refused", "following the format of the answer took more work than it may")
            return
        message = f"the model's output is not a finite number after {len(sequence.token_ids)} tokens"
        self._finish(sequence, "error", message)

    def _finish(self, sequence: Sequence, reason: str, message: str | None = None) -> None:
        self._scheduler.finish(sequence, keep=reason != "error")
        decode_s = sequence.decode_s()
        guesser = sequence.guesser
        self._outbox.append(
            Finished(
                sequence.request_id,
                reason,
                sequence.num_generated,
                decode_s,
                message,
                drafted_tokens=guesser.num_drafted,
                accepted_tokens=guesser.num_accepted,
            )
        )


@dataclass(frozen=True)
class Usage:
    """What `Pong` tells: sequences and cache blocks in use."""

    running: int
    waiting: int
    free_blocks: int
    total_blocks: int


def _is_finite(values: Tensor) -> bool:
    """Say whether no number is broken: one that is makes the sum so, in one operation instead of four."""
    return math.isfinite(float(values.sum()))
