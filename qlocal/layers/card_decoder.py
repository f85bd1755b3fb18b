"""A Decoder whose layers are, all or in part, on cards: those run by the card's kernels, others as `decoder.py` says.

The residual stream goes from place to place once: from the host through its layers, then from card to card."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qlocal.cache.storage import KVStorage
from qlocal.kernels.triton.gemv import MAX_TOKENS
from qlocal.layers.card_inputs import StepInputs, lay_out, slots_of
from qlocal.layers.card_span import CardSpan, spans
from qlocal.layers.decoder import Decoder
from qlocal.layers.native_decoder import NativeDecoder
from qlocal.layers.paged_attention import PagedAttention, TokenRun
from qlocal.layers.rotary import Rotation


class CardDecoder:
    """Does what `Decoder.forward` does over a block cache. Made by `card_decoder`."""

    def __init__(
        self,
        decoder: Decoder,
        card_spans: Sequence[CardSpan],
        storage: KVStorage,
        block_size: int,
        native: NativeDecoder | None,
    ) -> None:
        """native: the quick way through the first layers, where these are on the CPU."""
        self._decoder = decoder
        self._spans = {span.first: span for span in card_spans}
        self._storage = storage
        self._block_size = block_size
        self._native = native

    def forward(self, input_ids: Tensor, positions: Tensor, runs: Sequence[TokenRun]) -> Tensor:
        """input_ids and positions: (T,) int64 on the CPU; runs: stand one after another in T.

        Returns the residual stream (T, D) f32, unnormalized, on the last layer's device; it holds until the next step.
        """
        hidden_states, rotation = self._decoder.embedding(input_ids), self._decoder.rotary.at(positions)
        attention = PagedAttention(runs, self._storage, self._block_size)
        index = 0
        if self._native is not None and self._native.takes(len(input_ids)):
            index = self._native.num_layers
            hidden_states = self._native.run_first(hidden_states.contiguous(), rotation, runs)
        while index < len(self._decoder.layers):
            span = self._spans.get(index)
            if span is not None:
                hidden_states, index = self._run_span(span, hidden_states, rotation, runs), span.last
            else:
                last = min((first for first in self._spans if first > index), default=len(self._decoder.layers))
                hidden_states = self._decoder.run_layers(index, hidden_states, rotation, attention.of_layer, last)
                index = last
        return hidden_states

    def _run_span(self, span: CardSpan, hidden_states: Tensor, rotation: Rotation, runs: Sequence[TokenRun]) -> Tensor:
        layout = lay_out(runs, span.longest_piece, MAX_TOKENS)
        inputs = StepInputs(layout.shape, span.hidden_size, span.heads.head_dim, span.device)
        # Triton launches on the current card, whichever the tensors are on.
        with torch.cuda.device_of(inputs.hidden_states):  # type: ignore[no-untyped-call]
            inputs.send(hidden_states, rotation, layout, slots_of(runs, self._block_size))
            return span.run(inputs, layout)


def card_decoder(
    decoder: Decoder, storage: KVStorage, block_size: int, native: NativeDecoder | None = None
) -> CardDecoder | None:
    """Return the way to run `decoder` where any of its layers are on a card, or None where its own forward is it."""
    card_spans = spans(decoder, storage, block_size)
    return CardDecoder(decoder, card_spans, storage, block_size, native) if card_spans else None
