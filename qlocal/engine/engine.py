"""The engine: requests in, messages out, one step at a time. Knows no process, socket or text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qlocal.cache.block_manager import BlockManager
from qlocal.cache.storage import KVStorage
from qlocal.devices import default_threads
from qlocal.engine.memory import out_of_memory_in_words
from qlocal.engine.model_runner import ModelRunner
from qlocal.engine.requests import refusal
from qlocal.engine.sampler import Choice, prompt_logprobs, sample
from qlocal.engine.scheduler import ScheduledRun, Scheduler
from qlocal.engine.sequence import Sequence
from qlocal.formats.base import Checkpoint
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.kernels import dispatch
from qlocal.layers.decoder import Decoder
from qlocal.layers.loader import load_model
from qlocal.plan import Plan, plan_load
from qlocal.plan.words import brief
from qlocal.protocol import Finished, Load, Message, Progress, Ready, Started, Submit, Tokens
from qlocal.schema import HeldHead

_CACHE_DTYPES = {"f16": "float16", "f32": "float32"}
LOGITS_ROWS = 64
"""Prompt rows whose logits are held at once; (64, V) f32 are 39 MB for Qwen."""


class Engine:
    """One loaded model that serves up to `plan.slots` sequences at once."""

    def __init__(self, decoder: Decoder, plan: Plan, ready: Ready) -> None:
        config = decoder.config
        storage = KVStorage(
            [plan.device_of_layer(i) for i in range(config.num_hidden_layers)],
            plan.num_blocks,
            plan.block_size,
            config.num_key_value_heads,
            config.head_dim,
            _CACHE_DTYPES[plan.key_type],
        )
        fingerprint = f"{config!r} {plan.dtype} {plan.key_type} {plan.value_type}"
        self._blocks = BlockManager(plan.num_blocks, plan.block_size, fingerprint, storage.copy_block)
        self._scheduler = Scheduler(self._blocks, plan.slots, plan.prefill_chunk)
        self._runner = ModelRunner(decoder, storage, plan.block_size)
        self.vocab_size = config.vocab_size
        self._max_context = plan.max_context
        self._outbox: list[Message] = []
        self.ready = ready

    @classmethod
    def load(cls, load: Load, on_progress: Callable[[Progress], None]) -> Engine:
        """Open, plan and load what `load` names. Raises a QLocalError when the file or the machine cannot."""
        start = time.perf_counter()
        dispatch.set_threads(load.threads or default_threads())
        checkpoint = open_checkpoint(Path(load.path))
        plan = plan_load(checkpoint, load)
        stage = f"loading {brief(plan)}"
        with out_of_memory_in_words(checkpoint.path.name, plan):
            with torch.inference_mode():
                decoder = load_model(
                    checkpoint,
                    plan,
                    load.kernels,
                    lambda done, total: on_progress(Progress(stage, done, total)),
                )
            return cls(decoder, plan, _ready(checkpoint, plan, time.perf_counter() - start, decoder.held_head))

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to say."""
        return self._scheduler.has_work or bool(self._outbox)

    def usage(self) -> Usage:
        """Return what is in use now."""
        scheduler, blocks = self._scheduler, self._blocks
        return Usage(len(scheduler.running), len(scheduler.waiting), blocks.num_free, blocks.num_blocks)

    def submit(self, request: Submit) -> None:
        """Queue a request. One that cannot be run is answered by a `Finished` with reason `error`."""
        message = refusal(request, self._max_context, self.vocab_size)
        if message is None and self._scheduler.find(request.request_id) is not None:
            message = f"request '{request.request_id}' is running already"
        if message is not None:
            self._outbox.append(Finished(request.request_id, "error", 0, 0.0, message))
            return
        self._scheduler.waiting.append(Sequence.of(request))

    def cancel(self, request_id: str) -> None:
        """Stop a request and free its slot and blocks. One that has finished already is left alone."""
        sequence = self._scheduler.find(request_id)
        if sequence is not None:
            self._finish(sequence, "cancelled")

    @torch.inference_mode()
    def step(self) -> list[Message]:
        """Compute one batch, and return what there is to say about it."""
        batch = self._scheduler.next_batch()
        if batch:
            hidden_states = self._runner.forward(batch)  # (T, D) f32
            batch, hidden_states = self._drop_broken(batch, hidden_states)
            self._score_prompts(batch, hidden_states)
            choices = self._sample(batch, hidden_states)
            self._scheduler.commit(batch)
            for sequence, choice in choices:
                self._advance(sequence, choice)
            self._finish_scored(batch)
        messages, self._outbox = self._outbox, []
        return messages

    def _drop_broken(self, batch: list[ScheduledRun], hidden_states: Tensor) -> tuple[list[ScheduledRun], Tensor]:
        """End the sequences whose hidden states are not finite, before their keys and values are remembered."""
        if _is_finite(hidden_states):
            return batch, hidden_states
        kept: list[tuple[ScheduledRun, Tensor]] = []
        for run, rows in zip(batch, torch.split(hidden_states, [run.length for run in batch]), strict=True):
            if _is_finite(rows):
                kept.append((run, rows))
            else:
                self._fail(run.sequence)
        return [run for run, _ in kept], torch.cat([rows for _, rows in kept] or [hidden_states[:0]])

    def _score_prompts(self, batch: list[ScheduledRun], hidden_states: Tensor) -> None:
        """Collect the log probabilities of prompt tokens for the requests that ask for them."""
        first_row = 0
        for run in batch:
            request = run.sequence.request
            if request.echo_logprobs:
                next_ids = request.input_ids[run.start + 1 : run.start + 1 + run.length]
                rows = hidden_states[first_row : first_row + len(next_ids)]
                top = request.sampling.top_logprobs or 0
                for at in range(0, len(next_ids), LOGITS_ROWS):
                    logits = self._runner.logits(rows[at : at + LOGITS_ROWS])
                    scored = prompt_logprobs(logits, next_ids[at : at + LOGITS_ROWS], request.num_tokens, top)
                    run.sequence.prompt_logprobs += scored
            first_row += run.length

    def _sample(self, batch: list[ScheduledRun], hidden_states: Tensor) -> list[tuple[Sequence, Choice | None]]:
        """Choose a token for every sequence whose last known token was computed; (sequence, None) where that failed.

        The head computes only the rows that are sampled.
        """
        sampled: list[Sequence] = []
        rows: list[int] = []
        end = 0
        for run in batch:
            end += run.length
            if run.samples:
                self._start(run.sequence)
                if run.sequence.request.max_tokens == 0:
                    continue
                sampled.append(run.sequence)
                rows.append(end - 1)
        if not sampled:
            return []
        if len(rows) < len(hidden_states):
            hidden_states = hidden_states[rows]
        logits = self._runner.logits(hidden_states)  # (B, V) f32
        return list(zip(sampled, sample(logits, [s.sampling for s in sampled]), strict=True))

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
            )
        )

    def _advance(self, sequence: Sequence, choice: Choice | None) -> None:
        """Append the chosen token, report it, and end the sequence when it is its last."""
        if choice is None:
            self._fail(sequence)
            return
        request = sequence.request
        sequence.token_ids.append(choice.token_id)
        if choice.token_id in request.stop_ids:
            self._finish(sequence, "stop")
            return
        logprobs = [] if choice.logprobs is None else [choice.logprobs]
        self._outbox.append(Tokens(request.request_id, [choice.token_id], logprobs))
        if sequence.num_generated == request.max_tokens:
            self._finish(sequence, "length")

    def _finish_scored(self, batch: list[ScheduledRun]) -> None:
        """End the requests that wanted nothing but the log probabilities of their prompt."""
        for run in batch:
            if run.sequence.request.max_tokens == 0 and run.samples:
                self._finish(run.sequence, "length")

    def _fail(self, sequence: Sequence) -> None:
        message = f"the model's output is not a finite number after {len(sequence.token_ids)} tokens"
        self._finish(sequence, "error", message)

    def _finish(self, sequence: Sequence, reason: str, message: str | None = None) -> None:
        self._scheduler.finish(sequence, keep=reason != "error")
        decode_s = sequence.decode_s()
        self._outbox.append(Finished(sequence.request_id, reason, sequence.num_generated, decode_s, message))


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


def _ready(checkpoint: Checkpoint, plan: Plan, load_s: float, held_head: HeldHead | None) -> Ready:
    loaded_bytes = sum(stored.num_bytes for stored in checkpoint.tensors.values())
    devices = [part.device for part in plan.devices]
    return Ready(plan.max_context, plan.slots, plan.to_json(), devices, loaded_bytes, load_s, held_head)
