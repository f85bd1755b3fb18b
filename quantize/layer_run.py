"""One decoder layer run over all calibration samples, whole or up to the linears that are solved next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from qlocal.layers.attention import causal
from qlocal.layers.decoder import DecoderLayer
from qlocal.layers.ffn import Observe
from qlocal.layers.loader import load_layer
from qlocal.layers.rotary import Rotary
from quantize.calibration.hidden_states import HiddenStates
from quantize.source import PaddedSource

DTYPE = "bfloat16"
OnSample = Callable[[], None]


class LayerRun:
    """Layer `index` of the source, with its inputs. `between` holds the residual stream after attention."""

    def __init__(self, source: PaddedSource, index: int, inputs: HiddenStates, scratch: Path, device: str) -> None:
        self._source = source
        self._index = index
        self._inputs = inputs
        self._scratch = scratch
        self._between: HiddenStates | None = None
        self._device = torch.device(device)
        self._rotation = Rotary(source.config).at(torch.arange(inputs.shape[1], device=self._device))
        self._attend = causal([inputs.shape[1]])

    def load_layer(self) -> DecoderLayer:
        """Return the layer with the source's own weights; dense weights stay on the file's map."""
        return load_layer(self._source, self._index, self._device, DTYPE)

    def whole(self, layer: DecoderLayer, outputs: HiddenStates, observe: Observe | None) -> None:
        """Run the whole layer and store its outputs."""
        for sample in range(len(self._inputs)):
            states = self._inputs[sample].to(self._device)
            states = layer.attention_block(states, self._rotation, self._attend, observe)
            outputs[sample] = layer.ffn_block(states, observe).cpu()

    def attention(self, layer: DecoderLayer, observe: Observe | None, *, keep: bool) -> None:
        """Run the attention block; `keep` stores its outputs for `ffn`."""
        if keep and self._between is None:
            self._between = HiddenStates(self._scratch, self._inputs.shape, create=True)
        for sample in range(len(self._inputs)):
            states = self._inputs[sample].to(self._device)
            states = layer.attention_block(states, self._rotation, self._attend, observe)
            if keep and self._between is not None:
                self._between[sample] = states.cpu()

    def ffn(self, layer: DecoderLayer, observe: Observe) -> None:
        """Run the feed-forward block over what `attention` has kept."""
        assert self._between is not None, "attention(keep=True) runs first"
        for sample in range(len(self._between)):
            layer.ffn_block(self._between[sample].to(self._device), observe)

    def close(self) -> None:
        """Delete the scratch file."""
        if self._between is not None:
            self._between.remove()
            self._between = None
