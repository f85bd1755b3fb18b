"""One decoder layer run over all calibration samples, whole or up to the linears that are solved next.

What attention and FFN add to the residual stream is seen by later layers through a norm, which divides it by the size
of the whole stream. So an error that `o` or `down` makes at a token counts by the inverse of the stream's mean square
there: the few tokens with massive activations (arXiv 2402.17762), which would rule every sum of squares, count like
any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from quantize.estimate import samples_at_once
from quantize.source import PaddedSource

DTYPE = "bfloat16"
SMALLEST = 1e-12
"""Mean square below which a token's stream is nothing."""


class LayerRun:
    """Layer `index` of the source, with its inputs. What attention gives `o` is kept in the file `scratch`.

    The weights of tokens come from the first run of the `whole` layer, with the source's own weights: `mean_squares`,
    (S, L) f32 by role, which another LayerRun of the same inputs takes over.
    """

    def __init__(
        self,
        source: PaddedSource,
        index: int,
        inputs: HiddenStates,
        scratch: Path,
        device: str,
        mean_squares: dict[Role, Tensor] | None = None,
    ) -> None:
        self._source = source
        self._index = index
        self._inputs = inputs
        self._scratch = scratch
        self._attended: HiddenStates | None = None
        self._outputs: HiddenStates | None = None
        self.device = torch.device(device)
        samples, length, _ = inputs.shape
        self._at_once = min(samples, samples_at_once(source.config, length))
        positions = torch.arange(length, device=self.device).repeat(self._at_once)
        self._rotation = Rotary(source.config).at(positions)
        self.mean_squares = mean_squares or {role: torch.zeros(samples, length) for role in (Role.O, Role.DOWN)}

    def load_layer(self) -> DecoderLayer:
        """Return the layer with the source's own weights; dense weights stay on the file's map."""
        return load_layer(self._source, self._index, self.device, DTYPE)

    def whole(self, layer: DecoderLayer, outputs: HiddenStates, recorder: Recorder) -> None:
        """Run the whole layer and store its outputs; inputs are recorded without weights."""

        for samples in self._batches():
            states = self._states(samples)
            states = layer.add_attended(states, self._attend(layer, samples, states, recorder.observe))
            self.mean_squares[Role.O][samples] = self._by_sample(states.square().mean(-1))
            states = layer.ffn_block(states, recorder.observe)
            self.mean_squares[Role.DOWN][samples] = self._by_sample(states.square().mean(-1))
            outputs[samples] = self._by_sample(states)

    def attention(self, layer: DecoderLayer, recorder: Recorder) -> None:
        """Run attention up to `o` and keep what `o` reads."""
        if self._attended is None:
            shape = (*self._inputs.shape[:2], self._source.config.q_size)
            self._attended = HiddenStates(self._scratch, shape, create=True)
        for samples in self._batches():
            attended = self._attend(layer, samples, self._states(samples), self._observer(recorder, samples))
            self._attended[samples] = self._by_sample(attended)

    def ffn(self, layer: DecoderLayer, recorder: Recorder) -> None:
        """Run `o` and the feed-forward block over what `attention` has kept."""
        assert self._attended is not None, "attention runs first"
        for samples in self._batches():
            attended = self._attended[samples].flatten(0, 1).to(self.device)
            states = layer.add_attended(self._states(samples), attended)
            layer.ffn_block(states, self._observer(recorder, samples))

    @property
    def num_samples(self) -> int:
        """Samples of calibration."""
        return len(self._inputs)

    def samples_of(self, max_tokens: int) -> int:
        """Return how many samples have `max_tokens` tokens, as far as a pass takes them at once; at least one."""
        return max(1, min(self._at_once, max_tokens // self._inputs.shape[1]))

    def error(self, layer: DecoderLayer, samples: Sequence[int]) -> Tensor:
        """Return how far the outputs of `layer` are from those with the source's own weights: a scalar, the mean square
        over values and tokens of some samples, each token relative to its residual stream. In grad mode it has slopes.
        """
        states = self._of(self._inputs, samples).requires_grad_(torch.is_grad_enabled())
        attend = causal([self._inputs.shape[1]] * len(samples))
        change = layer.forward(states, self._rotation.rows(0, len(states)), attend) - self._of(self._targets(), samples)
        mean_squares = self.mean_squares[Role.DOWN][list(samples)].flatten().to(self.device)
        return (change.square().mean(-1) / mean_squares.clamp(min=SMALLEST)).mean()

    def _targets(self) -> HiddenStates:
        """Return the outputs with the source's own weights, which the first call makes."""
        if self._outputs is None:
            self._outputs = HiddenStates(self._scratch.with_suffix(".outputs.tmp"), self._inputs.shape, create=True)
            with torch.no_grad():
                self.whole(self.load_layer(), self._outputs, Recorder(self._source.config, {}))
        return self._outputs

    def _of(self, states: HiddenStates, samples: Sequence[int]) -> Tensor:
        """Return some samples one behind the other, (T, D) f32."""
        return torch.cat([states[sample] for sample in samples]).to(self.device)

    def _batches(self) -> Iterator[slice]:
        for start in range(0, len(self._inputs), self._at_once):
            yield slice(start, min(start + self._at_once, len(self._inputs)))

    def _by_sample(self, values: Tensor) -> Tensor:
        """(B * L, ...) on the device to (B, L, ...) in host memory."""
        return values.cpu().view(-1, self._inputs.shape[1], *values.shape[1:])

    def _states(self, samples: slice) -> Tensor:
        """Return the residual stream (B * L, D) before the layer."""
        return self._inputs[samples].flatten(0, 1).to(self.device)

    def _attend(self, layer: DecoderLayer, samples: slice, states: Tensor, observe: Observe) -> Tensor:
        """Return the inputs of `o` (B * L, H * Dh)."""
        length, count = self._inputs.shape[1], samples.stop - samples.start
        return layer.attended(states, self._rotation.rows(0, len(states)), causal([length] * count), observe)

    def _observer(self, recorder: Recorder, samples: slice) -> Observe:
        def observe(role: Role, expert: int | None, x_TK: Tensor, tokens: Tensor | None) -> bool:
            weights = None
            if role in self.mean_squares:
                mean_squares = self.mean_squares[role][samples].flatten().to(x_TK.device)
                weights = 1.0 / (mean_squares if tokens is None else mean_squares[tokens]).clamp(min=SMALLEST)
            return recorder.record((role, expert), x_TK, weights)

        return observe

    def close(self) -> None:
        """Delete the scratch files."""
        for states in (self._attended, self._outputs):
            if states is not None:
                states.remove()
        self._attended = self._outputs = None
