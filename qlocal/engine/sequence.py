"""One request on its way through the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from qlocal.cache.block_manager import BlockTable
from qlocal.engine.constraint import Constraint
from qlocal.engine.sampler import SamplingState
from qlocal.engine.speculation.guesser import Guesser
from qlocal.protocol import Submit, TokenLogprobs


@dataclass
class Sequence:
    """A request, its tokens so far and its place in the cache.

    token_ids: prompt and generated. num_computed: how many of them have keys and values in the cache.
    num_cached: of the prompt, how many had them before; num_restored: how many of these from beside the cache.
    table: None while it waits. prompt_logprobs: of prompt tokens 1, 2, ..., when the request asks for them.
    guesser: what is guessed to come next, and how that went. told_ahead: of those that wait, how many are said to be
    before it.
    """

    request: Submit
    sampling: SamplingState
    token_ids: list[int]
    table: BlockTable | None = None
    num_computed: int = 0
    num_cached: int = 0
    num_restored: int = 0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    guesser: Guesser = field(default_factory=Guesser)
    admitted_at: float = 0.0
    told_ahead: int | None = None
    started_at: float | None = None

    @classmethod
    def of(cls, request: Submit, constraint: Constraint | None = None) -> Sequence:
        """Return a new waiting sequence."""
        sampling = SamplingState(request.sampling, request.num_tokens, request.input_ids, constraint)
        return cls(request, sampling, list(request.input_ids))

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.input_ids)

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_remaining(self) -> int:
        """Tokens that may still be generated, 0 for a request that wants none."""
        return self.request.max_tokens - self.num_generated

    @property
    def num_pending(self) -> int:
        """Known tokens that the model has not seen yet: 1 while decoding, more while the prompt is read."""
        return len(self.token_ids) - self.num_computed

    @property
    def has_started(self) -> bool:
        """Whether the whole prompt has been read."""
        return self.started_at is not None

    def decode_s(self) -> float:
        """Seconds since the prompt was complete."""
        return 0.0 if self.started_at is None else time.perf_counter() - self.started_at
