"""The linears of a solved layer learn together: their scales go down the error of the whole layer's output.

What learns is what will be stored: AWQ's scales stand in the norms and biases, and those are in float16. Every sample
of calibration but a few is learned from; the few say which state is kept, and the first one is among those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from qlocal.devices import cpu_has_bf16
from qlocal.layers.decoder import DecoderLayer
from qlocal.layers.ffn import Ffn
from qlocal.layers.linear import Placement, QuantLinear
from qlocal.weights import AffineWeight, DenseWeight
from quantize.estimate import LEARNED_TOKENS
from quantize.layer_run import DTYPE, LayerRun
from quantize.methods.learned import LearnedWeight, product
from quantize.solvers.base import MIN_EXPERT_TOKENS, LayerTask

REACH = 0.035
"""How far a scale can go in all steps together, as a share of it. Steps fall to nothing in a straight line."""
SAMPLES_PER_HELD = 8
"""One sample of so many is held back."""
LOOKS = 4
"""How often the held samples are looked at: evenly over the steps, the last time after the last one."""
SEED = 20230911


def learn(
    task: LayerTask, run: LayerRun, weights: Mapping[str, AffineWeight], dense: Mapping[str, Tensor]
) -> tuple[dict[str, AffineWeight], str]:
    """Return the weights after `task.learn` steps, or of the best state on the way, and a sentence about it.

    weights: solved linears by tensor name; dense: what is not quantized, (N,) or (N, K) f32, as it will be stored.
    """
    with torch.inference_mode(False):  # what is made in that mode has no slopes
        descent = _Descent(task, run, weights, dense)
        before, after = descent.go_down()
        index = task.specs[0].layer
        note = f"layer {index}: output error {before:.3g} of samples held back, {after:.3g} after learning."
        return descent.best, note


class LearnedLinear(QuantLinear):
    """A linear whose parts learn while slopes go back through it. biases: (N,) f32 a part, or None."""

    def __init__(self, parts: Sequence[LearnedWeight], biases: Sequence[Tensor | None], placement: Placement) -> None:
        shapes = [part.shape for part in parts]
        super().__init__(shapes[0][1], [rows for rows, _ in shapes], placement)
        self._parts, self._biases = parts, biases

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Multiply. x: (T, K) f32. Returns (T, N) f32 for every part."""
        outputs = [product(x, part) for part in self._parts]
        return tuple(y if bias is None else y + bias for y, bias in zip(outputs, self._biases, strict=True))


class _Descent:
    """A layer on its way down. best: the weights of the least error on held samples so far."""

    def __init__(
        self, task: LayerTask, run: LayerRun, weights: Mapping[str, AffineWeight], dense: Mapping[str, Tensor]
    ) -> None:
        self.best = dict(weights)
        self._task, self._run = task, run
        self._placement = Placement(run.device, DTYPE, "reference")  # torch alone: slopes go through all of it
        emulated = run.device.type == "cpu" and not cpu_has_bf16()
        dtype = torch.float32 if emulated else torch.bfloat16
        self._learned = {
            name: LearnedWeight(weight, dtype, run.device, MIN_EXPERT_TOKENS) for name, weight in weights.items()
        }
        self._layer = self._make_layer({name: values.half().float() for name, values in dense.items()})
        samples = range(run.num_samples)
        self._held = samples[::SAMPLES_PER_HELD]
        self._others = [sample for sample in samples if sample not in self._held] or list(samples)

    def go_down(self) -> tuple[float, float]:
        """Take all steps. Returns the error on held samples before and the least one."""
        steps = self._task.learn
        first = least = self._held_error()
        for step, batch in zip(range(steps), self._batches(), strict=False):
            for weight in self._learned.values():
                weight.rate = REACH * (steps - step) / (steps * (steps + 1) / 2)
            torch.autograd.backward(self._run.error(self._layer, batch))
            if (step + 1) * LOOKS // steps > step * LOOKS // steps:
                error = self._held_error()
                if error < least:
                    least, self.best = error, {name: weight.stored() for name, weight in self._learned.items()}
        return first, least

    def _held_error(self) -> float:
        total = 0.0
        with torch.no_grad():
            for batch in _cut(self._held, self._run.samples_of(LEARNED_TOKENS)):
                total += float(self._run.error(self._layer, batch)) * len(batch)
        return total / len(self._held)

    def _batches(self) -> Iterator[list[int]]:
        """Go through the samples again and again, each time in another order, always the same ones."""
        generator = torch.Generator().manual_seed(SEED)
        while True:
            order = torch.randperm(len(self._others), generator=generator).tolist()
            yield from _cut([self._others[place] for place in order], self._run.samples_of(LEARNED_TOKENS))

    def _make_layer(self, dense: Mapping[str, Tensor]) -> DecoderLayer:
        layer = DecoderLayer(self._task.source.config, self._placement)
        parts: dict[QuantLinear, list[tuple[LearnedWeight, Tensor | None]]] = {}
        for spec in self._task.specs:
            if spec.name in self._learned:
                bias = dense.get(spec.module + ".bias")
                linear, _ = layer.linear(spec.role, spec.expert)
                parts.setdefault(linear, []).append((self._learned[spec.name], _on(bias, layer.device)))
            elif not spec.is_bias:
                layer.replace(spec.role, spec.expert, DenseWeight(dense[spec.name]))
        layer.qkv, layer.o = self._linear(parts[layer.qkv]), self._linear(parts[layer.o])
        for ffn in [layer.ffn] if isinstance(layer.ffn, Ffn) else layer.ffn.experts:
            ffn.gate_up, ffn.down = self._linear(parts[ffn.gate_up]), self._linear(parts[ffn.down])
        return layer

    def _linear(self, parts: Sequence[tuple[LearnedWeight, Tensor | None]]) -> LearnedLinear:
        """The table lists the parts in the order of the linear."""
        return LearnedLinear([weight for weight, _ in parts], [bias for _, bias in parts], self._placement)


def _cut(samples: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(samples), size):
        yield list(samples[start : start + size])


def _on(bias: Tensor | None, device: torch.device) -> Tensor | None:
    return None if bias is None else bias.to(device)
