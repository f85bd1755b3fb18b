"""A Decoder whose layers are, all or in part, on cards: those run by the card's kernels, others as `decoder.py` says.

The residual stream goes from place to place once: from the host through its layers, then from card to card."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qlocal.cache.storage import KVStorage
from qlocal.layers.card_draws import Draws
from qlocal.layers.card_span import CardSpan, spans
from qlocal.layers.card_steps import CardSteps
from qlocal.layers.card_tail import CardTail, Reported, StepResult, can_choose, read_report, rows_of
from qlocal.layers.decoder import Decoder
from qlocal.layers.native_decoder import NativeDecoder
from qlocal.layers.paged_attention import PagedAttention, TokenRun
from qlocal.layers.recording import CudaRecorder, Recorder

MakeRecorder = Callable[[torch.device], "Recorder | None"]


class CardDecoder:
    """Does what `Decoder` does over a block cache. Made by `card_decoder`."""

    def __init__(
        self,
        decoder: Decoder,
        card_spans: Sequence[CardSpan],
        storage: KVStorage,
        block_size: int,
        native: NativeDecoder | None,
        make_recorder: MakeRecorder,
    ) -> None:
        """native: the quick way through the first layers, where these are on the CPU."""
        self._decoder = decoder
        self._storage = storage
        self._block_size = block_size
        self._native = native
        self._num_tokens = decoder.head.out_features[0]
        self._steps = {span.first: CardSteps(span, block_size, make_recorder(span.device), None) for span in card_spans}
        self._last = self._steps[card_spans[-1].first]
        self._result = StepResult(torch.empty(0))
        self._set_tail()

    def forward(
        self, input_ids: Tensor, positions: Tensor, runs: Sequence[TokenRun], draws: Draws | None = None
    ) -> Tensor:
        """input_ids and positions: (T,) int64 on the CPU; runs: stand one after another in T. draws: how `report` is to
        have the next tokens, None for the likeliest; ask `can_draw`.

        Returns the residual stream (T, D) f32, unnormalized, on the last layer's device; it holds until the next step.
        """
        if draws is not None:
            self.choose_among(draws.num_tokens)
        hidden_states, rotation = self._decoder.embedding(input_ids), self._decoder.rotary.at(positions)
        attention = PagedAttention(runs, self._storage, self._block_size)
        result, index, end = StepResult(hidden_states), 0, len(self._decoder.layers)
        if self._native is not None and self._native.takes(len(input_ids)):
            index = self._native.num_layers
            result = StepResult(self._native.run_first(hidden_states.contiguous(), rotation, runs))
        while index < end:
            steps = self._steps.get(index)
            if steps is not None:
                of_last = draws if steps is self._last else None
                result, index = steps.run(result.hidden_states, rotation, runs, of_last), steps.span.last
            else:
                last = min((first for first in self._steps if first > index), default=end)
                after = self._decoder.run_layers(index, result.hidden_states, rotation, attention.of_layer, last)
                result, index = StepResult(after), last
        self._result = result
        return result.hidden_states

    def logits(self, rows: Sequence[int]) -> Tensor:
        """Return (t, V) f32 for t rows of the last `forward`; of a part that is not rank 0's, nothing to use."""
        made = rows_of(self._result, rows)
        if made is not None:
            return self._decoder.joined(made)
        return self._decoder.logits(self._result.hidden_states[list(rows)])

    def report(self) -> Reported | None:
        """Return what the last `forward` reports to the host, where it does: sums by row, and the likeliest tokens."""
        return None if self._result.report is None else read_report(self._result.report)

    def can_draw(self, num_rows: int) -> bool:
        """Whether a step of so many tokens draws what comes after them."""
        return self._last.can_draw(num_rows)

    def choose_among(self, num_tokens: int) -> bool:
        """Let the likeliest tokens be among the first `num_tokens`, from the next step on. Return whether they were."""
        is_so = num_tokens == self._num_tokens
        if not is_so:
            self._num_tokens = num_tokens
            self._set_tail()
        return is_so

    def _set_tail(self) -> None:
        decoder, span = self._decoder, self._last.span
        is_end = span.last == len(decoder.layers) and can_choose(decoder.head, decoder.final_norm, span.device)
        self._last.forget(CardTail(decoder, self._num_tokens) if is_end else None)


def card_decoder(
    decoder: Decoder,
    storage: KVStorage,
    block_size: int,
    native: NativeDecoder | None = None,
    make_recorder: MakeRecorder | None = None,
) -> CardDecoder | None:
    """Return the way to run `decoder` where any of its layers are on a card, or None where its own forward is it.

    make_recorder: how steps are recorded on a device; by default as CUDA graphs, on cards."""
    card_spans = spans(decoder, storage, block_size)
    if not card_spans:
        return None
    return CardDecoder(decoder, card_spans, storage, block_size, native, make_recorder or _cuda_recorder)


def _cuda_recorder(device: torch.device) -> Recorder | None:
    return CudaRecorder(device) if device.type == "cuda" else None
