"""The steps of one card's layers: eager where tokens are many or the host has a part in them, else recorded.

The first step of a shape is run as it is, which compiles its kernels; the second is recorded, later ones replayed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qlocal.kernels.triton.gemv import MAX_TOKENS
from qlocal.layers.card_draws import Drawing, Draws
from qlocal.layers.card_inputs import StepInputs, StepLayout, StepShape, lay_out, slots_of
from qlocal.layers.card_span import CardSpan
from qlocal.layers.card_tail import CardTail, StepResult
from qlocal.layers.paged_attention import TokenRun
from qlocal.layers.recording import Recorded, Recorder
from qlocal.layers.rotary import Rotation

MAX_RECORDED_TOKENS = 8
"""A batch of so many sequences, or a draft of so many tokens; larger steps are rare and take long enough to launch."""
_MAX_SHAPES = 32


@dataclass
class _Kept:
    """One shape: its inputs, whose memory stays, and what was recorded over them. has_run: its kernels are compiled."""

    inputs: StepInputs
    has_run: bool = False
    recorded: Recorded[StepResult] | None = None


class CardSteps:
    """Runs a span over the runs of a step. tail: what follows the last layer, where that is on this card as well."""

    def __init__(self, span: CardSpan, block_size: int, recorder: Recorder | None, tail: CardTail | None) -> None:
        """recorder: None to run every step as it is."""
        self.span = span
        self._block_size = block_size
        self._recorder = None if span.has_host_work else recorder
        self._tail = tail
        self._kept: OrderedDict[StepShape, _Kept] = OrderedDict()

    def forget(self, tail: CardTail | None) -> None:
        """Record anew from now on, with another tail."""
        self._kept.clear()
        self._tail = tail

    def run(
        self, hidden_states: Tensor, rotation: Rotation, runs: Sequence[TokenRun], draws: Draws | None = None
    ) -> StepResult:
        """hidden_states: (T, D) f32 before the first layer, on the host or a card; rotation: on the host. draws: how
        the tail is to draw. The result holds until the next step."""
        layout = lay_out(runs, self.span.longest_piece, MAX_TOKENS)
        drawing = draws.drawing if draws is not None and self.can_draw(layout.tokens) else None
        shape = replace(layout.shape, drawing=drawing)
        is_kept = layout.tokens <= MAX_RECORDED_TOKENS and not layout.long_runs and self._recorder is not None
        kept = self._keep(shape) if is_kept else _Kept(self._new_inputs(shape))
        # Triton launches on the current card, whichever the tensors are on.
        with torch.cuda.device_of(kept.inputs.hidden_states):  # type: ignore[no-untyped-call]
            drawn = None
            if draws is not None and drawing is not None and self._tail is not None:
                drawn = draws, self._tail.table()
            kept.inputs.send(hidden_states, rotation, layout, slots_of(runs, self._block_size), drawn)
            if kept.recorded is None and kept.has_run and self._recorder is not None:
                kept.recorded = self._recorder.record(lambda: self._compute(kept.inputs, layout, drawing))
            if kept.recorded is None:
                kept.has_run = True
                return self._compute(kept.inputs, layout, drawing)
            kept.recorded.replay()
            return kept.recorded.result

    def run_together(self, parts: Sequence[tuple[Tensor, Rotation, Sequence[TokenRun]]]) -> list[Tensor]:
        """Run the parts of a long step, each as `run` takes it, so that sums over ranks have time to be made. Returns
        their residual streams (t, D) f32."""
        made: list[tuple[StepInputs, StepLayout]] = []
        for hidden_states, rotation, runs in parts:
            layout = lay_out(runs, self.span.longest_piece, MAX_TOKENS)
            inputs = self._new_inputs(layout.shape)
            with torch.cuda.device_of(inputs.hidden_states):  # type: ignore[no-untyped-call]
                inputs.send(hidden_states, rotation, layout, slots_of(runs, self._block_size))
            made.append((inputs, layout))
        with torch.cuda.device_of(made[0][0].hidden_states):  # type: ignore[no-untyped-call]
            return self.span.run_together(made)

    def can_draw(self, num_tokens: int) -> bool:
        """Whether a step of so many tokens ends with their successors."""
        # A chunk of a prompt needs logits of its last token at most, which `Decoder.logits` makes.
        return self._tail is not None and num_tokens <= MAX_TOKENS

    def _compute(self, inputs: StepInputs, layout: StepLayout, drawing: Drawing | None) -> StepResult:
        stream = self.span.run(inputs, layout)
        if self._tail is None or not self.can_draw(layout.tokens):
            return StepResult(stream)
        return self._tail.run(stream, inputs.draws, drawing)

    def _keep(self, shape: StepShape) -> _Kept:
        kept = self._kept.get(shape)
        if kept is None:
            kept = self._kept[shape] = _Kept(self._new_inputs(shape))
            if len(self._kept) > _MAX_SHAPES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(shape)
        return kept

    def _new_inputs(self, shape: StepShape) -> StepInputs:
        return StepInputs(shape, self.span.hidden_size, self.span.heads.head_dim, self.span.device)
