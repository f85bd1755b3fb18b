"""Engines of tiny models, and a loop that runs requests to their end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from qlocal.engine.engine import Engine
from qlocal.engine.model_runner import ModelRunner
from qlocal.engine.speculation.speculator import Speculator
from qlocal.layers.kv_conditioning import storage_for
from qlocal.layers.loader import load_model
from qlocal.plan import make_plan
from qlocal.protocol import Finished, Message, Queued, Reading, Ready, Sampling, Started, Submit, TokenLogprobs, Tokens
from tests.memory_checkpoint import MemoryCheckpoint

GREEDY = Sampling(temperature=0.0)
VOCAB = 320


def engine_of(
    checkpoint: MemoryCheckpoint,
    *,
    devices: Sequence[str] = ("cpu",),
    num_blocks: int | None = None,
    block_size: int = 16,
    slots: int = 8,
    prefill_chunk: int = 32,
    dtype: str = "float32",
    kv: str | None = None,
    speculator: Speculator | None = None,
) -> Engine:
    plan = make_plan(
        checkpoint,
        devices,
        slots=slots,
        dtype=dtype,
        block_size=block_size,
        kv=kv,
        prefill_chunk=prefill_chunk,
    )
    if num_blocks is not None:
        plan = replace(plan, num_blocks=num_blocks, max_context=min(plan.max_context, num_blocks * block_size))
    ready = Ready(plan.max_context, plan.slots, plan.to_json(), list(devices), 0, 0.0)
    with torch.inference_mode():
        decoder = load_model(checkpoint, plan)
        runner = ModelRunner(decoder, storage_for(decoder, plan), plan.block_size)
    origin = {"geometry": repr(decoder.config), "types": f"{plan.dtype} {plan.key_type} {plan.value_type}"}
    return Engine(runner, plan, ready, decoder.config.vocab_size, origin, speculator=speculator)


def request(
    request_id: str,
    input_ids: list[int],
    max_tokens: int = 8,
    sampling: Sampling = GREEDY,
    stop_ids: Sequence[int] = (),
    num_tokens: int = VOCAB,
    scored_from: int | None = None,
    **files: str,
) -> Submit:
    return Submit(request_id, input_ids, max_tokens, list(stop_ids), sampling, num_tokens, scored_from, **files)


@dataclass
class Answer:
    """Everything an engine said about one request, but its place in the queue and how far its prompt was read."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    started: Started | None = None
    finished: Finished | None = None

    @property
    def reason(self) -> str | None:
        return None if self.finished is None else self.finished.reason


def collect(messages: Sequence[Message], answers: dict[str, Answer]) -> None:
    for message in messages:
        if isinstance(message, Queued | Reading):
            continue
        assert isinstance(message, (Started, Tokens, Finished))
        answer = answers.setdefault(message.request_id, Answer())
        assert answer.finished is None, "nothing follows a Finished"
        if isinstance(message, Started):
            assert answer.started is None
            answer.started = message
        elif isinstance(message, Tokens):
            assert answer.started is not None, "tokens follow Started"
            answer.token_ids += message.token_ids
            answer.logprobs += message.logprobs
        else:
            answer.finished = message


def run(engine: Engine, *requests: Submit, max_steps: int = 5000) -> dict[str, Answer]:
    """Submit all requests at once and step until every one has finished."""
    answers: dict[str, Answer] = {}
    for submit in requests:
        engine.submit(submit)
    for _ in range(max_steps):
        if not engine.has_work:
            return answers
        collect(engine.step(), answers)
    raise AssertionError(f"still working after {max_steps} steps")
