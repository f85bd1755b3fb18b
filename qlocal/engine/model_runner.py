"""From token ids to hidden states and logits: the only part of the engine that computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qlocal.cache.storage import KVStorage
from qlocal.kernels import dispatch
from qlocal.layers.attention import Attend
from qlocal.layers.decoder import Decoder
from qlocal.layers.native_decoder import NativeDecoder, native_decoder
from qlocal.layers.paged_attention import PagedAttention, TokenRun

if TYPE_CHECKING:
    from qlocal.layers.card_decoder import CardDecoder
    from qlocal.layers.card_draws import Draws
    from qlocal.layers.card_tail import Reported


Between = Callable[[], None]


class ModelRunner:
    """The model with its cache, or one rank's part of both. is_whole: no other rank has a part."""

    def __init__(self, decoder: Decoder, storage: KVStorage, block_size: int, *, is_whole: bool = True) -> None:
        self._decoder = decoder
        self.cache = storage
        self._block_size = block_size
        # The native step runs a layer in one call, which leaves no place for sums over ranks.
        self._native = native_decoder(decoder, storage, block_size) if is_whole else None
        self._card = _card_decoder(decoder, storage, block_size, self._native)
        self._hidden_states = torch.empty(0)
        self._reported: Reported | None = None
        self._is_reported = False

    def forward(
        self,
        input_ids: Sequence[int],
        runs: Sequence[TokenRun],
        between: Between | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """Run all layers over the tokens of `runs`, which stand one after another. Returns (T, D) f32.

        between: is called before a layer where the processor computes it, and may end the step by an exception.
        draws: how `drawn` is to have the next tokens, where `can_draw` says so.
        """
        attention, ids = PagedAttention(runs, self.cache, self._block_size), torch.tensor(input_ids)
        self._is_reported = False
        if self._card is not None:
            self._hidden_states = self._card.forward(ids, attention.positions, runs, draws)
        elif self._native is not None and self._native.takes(len(ids)):
            self._hidden_states = self._native.forward(ids, attention.positions, runs, between)
        else:
            of_layer = attention.of_layer if between is None else _after(between, attention.of_layer)
            self._hidden_states = self._decoder.forward(ids, attention.positions, of_layer)
        return self._hidden_states

    def row_sums(self) -> Tensor:
        """Return the sum of every row of the last `forward`, (T,) f32 on the host: one broken number breaks it."""
        report = self._report()
        return self._hidden_states.sum(1).cpu() if report is None else torch.tensor(report.sums)

    def logits(self, rows: Sequence[int]) -> Tensor:
        """Return (t, V) f32 for t rows of the last `forward`; of a part that is not rank 0's, nothing to use."""
        if self._card is not None:
            return self._card.logits(rows)
        is_all = list(rows) == [*range(len(self._hidden_states))]
        return self._decoder.logits(self._hidden_states if is_all else self._hidden_states[rows])

    def most_likely(self, rows: Sequence[int], num_tokens: int) -> list[int | None] | None:
        """Return the likeliest of the first `num_tokens` tokens for some rows of the last `forward`, None for a row
        whose logits are not finite; None altogether where the device has not found them, and `logits` are the way."""
        if self._card is None:
            return None
        is_known = self._card.choose_among(num_tokens)
        report = self._report() if is_known else None
        return None if report is None else [report.best[row] for row in rows]

    def can_draw(self, num_rows: int) -> bool:
        """Whether the device draws what comes after the tokens of a step of so many."""
        return self._card is not None and self._card.can_draw(num_rows)

    def drawn(self, rows: Sequence[int]) -> list[int | None] | None:
        """Return what the device has drawn for some rows of the last `forward`, which was told how; None for a row
        whose logits are not finite. None altogether where it left one open, and `logits` are the way."""
        report = self._report()
        if report is None or not report.undecided.isdisjoint(rows):
            return None
        return [report.best[row] for row in rows]

    def _report(self) -> Reported | None:
        """Return what a card has reported of the last `forward`, brought here once."""
        if self._card is not None and not self._is_reported:
            self._reported, self._is_reported = self._card.report(), True
        return self._reported

    def copy_block(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first tokens of one block of the cache to another, in every layer."""
        self.cache.copy_block(source, target, num_tokens)


def _after(between: Between, attend_of_layer: Callable[[int], Attend]) -> Callable[[int], Attend]:
    """Return the same, with `between` called first."""

    def of_layer(index: int) -> Attend:
        between()
        return attend_of_layer(index)

    return of_layer


def _card_decoder(
    decoder: Decoder, storage: KVStorage, block_size: int, native: NativeDecoder | None
) -> CardDecoder | None:
    if all(dispatch.why_no_card_kernels(layer.device) is not None for layer in decoder.layers):
        return None
    from qlocal.layers.card_decoder import card_decoder  # triton is optional, and takes a second to load

    return card_decoder(decoder, storage, block_size, native)
