"""What a request adds to logits before a token is drawn: penalties for tokens that it has seen, and a bias.

The one state of a request that depends on its tokens; who draws elsewhere keeps a copy, by `noted`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qlocal.schema import Sampling


class Adjustment:
    """Penalties and bias of one request. The repetition penalty counts prompt and answer, the others the answer alone.

    noted: the tokens of the answer so far, in their order, where anything depends on them."""

    def __init__(self, sampling: Sampling, num_tokens: int, prompt_ids: Sequence[int]) -> None:
        """num_tokens: ids that stand for a token."""
        self.sampling = sampling
        self.num_tokens = num_tokens
        self.noted: list[int] = []
        # Only the repetition penalty asks what stands in the prompt.
        punishes = sampling.repetition_penalty != 1.0
        self._prompt_ids = sorted({i for i in prompt_ids if i < num_tokens}) if punishes else []
        self._seen: Tensor | None = None
        self._counts: Tensor | None = None
        if punishes:
            self._seen = self.in_prompt()
        if sampling.presence_penalty or sampling.frequency_penalty:
            self._counts = torch.zeros(num_tokens)
        bias = sorted(item for item in sampling.logit_bias.items() if item[0] < num_tokens)
        self._bias_ids = torch.tensor([token_id for token_id, _ in bias], dtype=torch.int64)
        self._bias = torch.tensor([value for _, value in bias])

    @property
    def is_none(self) -> bool:
        """Whether logits stay as they are."""
        return self._seen is None and self._counts is None and not len(self._bias_ids)

    def note(self, token_id: int) -> None:
        """Count a generated token."""
        if self._seen is not None:
            self._seen[token_id] = True
        if self._counts is not None:
            self._counts[token_id] += 1
        if self._seen is not None or self._counts is not None:
            self.noted.append(token_id)

    def adjusted(self, logits: Tensor) -> Tensor:
        """Apply penalties and bias to (num_tokens,) f32, without writing to it."""
        settings = self.sampling
        if self._seen is not None:
            penalty = settings.repetition_penalty
            punished = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits = torch.where(self._seen, punished, logits)
        if self._counts is not None:
            present = (self._counts > 0).float()
            logits = logits - settings.frequency_penalty * self._counts - settings.presence_penalty * present
        if len(self._bias_ids):
            logits = logits.index_add(0, self._bias_ids, self._bias)
        return logits

    def in_prompt(self) -> Tensor:
        """Return which tokens stand in the prompt: (num_tokens,) bool."""
        seen = torch.zeros(self.num_tokens, dtype=torch.bool)
        seen[self._prompt_ids] = True
        return seen

    def counts(self) -> Tensor:
        """Return how often every token stands in the answer: (num_tokens,) f32."""
        return torch.bincount(torch.tensor(self.noted, dtype=torch.int64), minlength=self.num_tokens).float()

    def bias(self) -> Tensor:
        """Return what is added to every logit: (num_tokens,) f32."""
        return torch.zeros(self.num_tokens).index_add(0, self._bias_ids, self._bias)
