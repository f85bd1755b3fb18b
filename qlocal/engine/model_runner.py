"""From a batch of runs to hidden states and logits: the only part of the engine that computes."""

from __future__ import annotations

import torch
from torch import Tensor

from qlocal.cache.storage import KVStorage
from qlocal.engine.scheduler import ScheduledRun
from qlocal.layers.decoder import Decoder
from qlocal.layers.native_decoder import native_decoder
from qlocal.layers.paged_attention import PagedAttention, TokenRun


class ModelRunner:
    """The model with its cache."""

    def __init__(self, decoder: Decoder, storage: KVStorage, block_size: int) -> None:
        self._decoder = decoder
        self._storage = storage
        self._block_size = block_size
        self._native = native_decoder(decoder, storage, block_size)

    def forward(self, batch: list[ScheduledRun]) -> Tensor:
        """Run all layers over the batch, whose runs stand one after another in T. Returns (T, D) f32."""
        runs = []
        for run in batch:
            assert run.sequence.table is not None, "the scheduler gave it blocks"
            runs.append(TokenRun(run.length, run.start, run.sequence.table.blocks))
        attention = PagedAttention(runs, self._storage, self._block_size)
        input_ids = torch.tensor([token_id for run in batch for token_id in run.token_ids], dtype=torch.int64)
        if self._native is not None and self._native.takes(len(input_ids)):
            return self._native.forward(input_ids, attention.positions, runs)
        return self._decoder.forward(input_ids, attention.positions, attention.of_layer)

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Return (t, V) f32 for the (t, D) hidden states of the tokens that need logits."""
        return self._decoder.logits(hidden_states)
