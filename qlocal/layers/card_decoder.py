"""A Decoder whose layers are, all or in part, on cards: those run by the card's kernels, others as `decoder.py` says.

The residual stream goes from place to place once: from the host through its layers, then from card to card; that of a
prompt in parts, so that no card waits for another to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from qlocal.cache.storage import KVStorage
from qlocal.layers.card_draws import Draws
from qlocal.layers.card_span import CardSpan, spans
from qlocal.layers.card_steps import CardSteps
from qlocal.layers.card_tail import CardTail, Reported, StepResult, can_choose, read_report, rows_of
from qlocal.layers.decoder import Decoder
from qlocal.layers.native_decoder import NativeDecoder
from qlocal.layers.paged_attention import PagedAttention, TokenRun, cut_runs
from qlocal.layers.recording import CudaRecorder, Recorder
from qlocal.layers.rotary import Rotation

PART_TOKENS, MAX_PARTS = 128, 8
"""Of a step that goes through several cards: parts of fewer tokens would leave a card's products half empty, and with
eight parts on two cards eight ninths of the time both work."""
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
        # The host has no part in between: its own layers take long enough, and its questions wait for a card.
        on_cards = sum(span.last - span.first for span in card_spans)
        is_mixture = any(span.is_mixture for span in card_spans)
        self._is_all_on_cards = on_cards == len(decoder.layers) and not is_mixture
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
        parts = cut_runs(runs, self._num_parts(len(input_ids)))
        if len(parts) == 1:
            self._result = self._run(hidden_states, rotation, runs, draws)
            return self._result.hidden_states
        lengths = [sum(run.length for run in part) for part in parts]
        ends = [*accumulate(lengths)]
        rotations = [rotation.rows(end - length, end) for length, end in zip(lengths, ends, strict=True)]
        cut = [*zip(torch.split(hidden_states, lengths), rotations, parts, strict=True)]
        if len(self._steps) == 1:
            results = self._last.run_together(cut)
        else:
            results = [self._run(*part, None).hidden_states for part in cut]
        self._result = StepResult(torch.cat(results))
        return self._result.hidden_states

    def _num_parts(self, num_tokens: int) -> int:
        """Return in how many parts a step goes through the cards. Through those of a layer split all are launched at
        once: while a card computes one, the card before it computes the next. On a rank of a tensor split one half is
        computed while the ranks add up what the other gives."""
        if not self._is_all_on_cards:
            return 1
        of_one_card = 2 if self._last.span.adds_over_ranks else 1
        most = of_one_card if len(self._steps) == 1 else MAX_PARTS
        return max(1, min(most, num_tokens // PART_TOKENS))

    def _run(
        self, hidden_states: Tensor, rotation: Rotation, runs: Sequence[TokenRun], draws: Draws | None
    ) -> StepResult:
        """Run all layers over a step or a part of one. hidden_states: (T, D) f32, embedded."""
        attention = PagedAttention(runs, self._storage, self._block_size)
        result, index, end = StepResult(hidden_states), 0, len(self._decoder.layers)
        if self._native is not None and self._native.takes(len(hidden_states)):
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
        return result

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
