"""One decoder layer run over all calibration samples, whole or up to the linears that are solved next.

What attention and FFN add to the residual stream is seen by later layers through a norm, which divides it by the size
of the whole stream. So an error that `o` or `down` makes at a token counts by the inverse of the stream's mean square
there: the few tokens with massive activations (arXiv 2402.17762), which would rule every sum of squares, count like
any other.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from qlocal.layers.attention import causal
from qlocal.layers.decoder import DecoderLayer
from qlocal.layers.ffn import Observe
from qlocal.layers.loader import load_layer
from qlocal.layers.rotary import Rotary
from qlocal.models.base import Role
from quantize.calibration.hidden_states import HiddenStates
from quantize.calibration.recorder import Recorder
from quantize.source import PaddedSource

DTYPE = "bfloat16"
SMALLEST = 1e-12
"""Mean square below which a token's stream is nothing."""


class LayerRun:
    """Layer `index` of the source, with its inputs. `between` holds the residual stream after attention.

    The weights of tokens come from the first run of the `whole` layer, with the source's own weights.
    """

    def __init__(self, source: PaddedSource, index: int, inputs: HiddenStates, scratch: Path, device: str) -> None:
        self._source = source
        self._index = index
        self._inputs = inputs
        self._scratch = scratch
        self._between: HiddenStates | None = None
        self._device = torch.device(device)
        self._rotation = Rotary(source.config).at(torch.arange(inputs.shape[1], device=self._device))
        self._attend = causal([inputs.shape[1]])
        samples, length, _ = inputs.shape
        self._mean_squares = {role: torch.zeros(samples, length) for role in (Role.O, Role.DOWN)}

    def load_layer(self) -> DecoderLayer:
        """Return the layer with the source's own weights; dense weights stay on the file's map."""
        return load_layer(self._source, self._index, self._device, DTYPE)

    def whole(self, layer: DecoderLayer, outputs: HiddenStates, recorder: Recorder) -> None:
        """Run the whole layer and store its outputs; inputs are recorded without weights."""

        def observe(role: Role, expert: int | None, x_TK: Tensor, tokens: Tensor | None) -> None:
            recorder.record((role, expert), x_TK, None)

        for sample in range(len(self._inputs)):
            states = self._inputs[sample].to(self._device)
            states = layer.attention_block(states, self._rotation, self._attend, observe)
            self._mean_squares[Role.O][sample] = states.square().mean(-1)
            states = layer.ffn_block(states, observe)
            self._mean_squares[Role.DOWN][sample] = states.square().mean(-1)
            outputs[sample] = states.cpu()

    def attention(self, layer: DecoderLayer, recorder: Recorder | None, *, keep: bool) -> None:
        """Run the attention block; `keep` stores its outputs for `ffn`."""
        if keep and self._between is None:
            self._between = HiddenStates(self._scratch, self._inputs.shape, create=True)
        for sample in range(len(self._inputs)):
            states = self._inputs[sample].to(self._device)
            states = layer.attention_block(states, self._rotation, self._attend, self._observer(recorder, sample))
            if keep and self._between is not None:
                self._between[sample] = states.cpu()

    def ffn(self, layer: DecoderLayer, recorder: Recorder) -> None:
        """Run the feed-forward block over what `attention` has kept."""
        assert self._between is not None, "attention(keep=True) runs first"
        for sample in range(len(self._between)):
            layer.ffn_block(self._between[sample].to(self._device), self._observer(recorder, sample))

    def _observer(self, recorder: Recorder | None, sample: int) -> Observe | None:
        if recorder is None:
            return None

        def observe(role: Role, expert: int | None, x_TK: Tensor, tokens: Tensor | None) -> None:
            weights = None
            if role in self._mean_squares:
                mean_squares = self._mean_squares[role][sample].to(x_TK.device)
                weights = 1.0 / (mean_squares if tokens is None else mean_squares[tokens]).clamp(min=SMALLEST)
            recorder.record((role, expert), x_TK, weights)

        return observe

    def close(self) -> None:
        """Delete the scratch file."""
        if self._between is not None:
            self._between.remove()
            self._between = None
