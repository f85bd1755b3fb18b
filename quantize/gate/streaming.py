"""A source and its candidates run side by side, a decoder layer of each in memory at a time.

Held in memory: the residual streams of all windows, one layer of the source and one of a candidate, and evenly taken
inputs of the source's linears. Dense weights and GGUF blocks stay on the map of their file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qlocal.formats.base import Checkpoint
from qlocal.layers.attention import Attend, causal
from qlocal.layers.decoder import Decoder, DecoderLayer
from qlocal.layers.ffn import Observe
from qlocal.layers.loader import load_embedding, load_head, load_layer
from qlocal.layers.norm import rms_norm
from qlocal.layers.rotary import Rotary
from qlocal.models.base import ModelConfig, Role
from quantize.calibration.recorder import Key
from quantize.gate.linear_error import edge_errors, layer_errors

BATCH_TOKENS = 1024
"""Windows that run together: bounds scratch (three times 1024 x 29,696 float32 are 365 MB for 72B)."""
SAMPLE_TOKENS = 512
"""Inputs of a linear that its error is measured on."""
HEAD_TOKENS = 128
"""The same for the head, whose outputs are as many as the vocabulary."""
OnLayer = Callable[[int, int], None]
"""Called with (layers done, layers in all)."""


@dataclass(frozen=True)
class Machine:
    """Where and how layers are computed. dtype: of the inputs of matrix products."""

    device: str = "cpu"
    dtype: str = "float32"


class StreamedDecoder(Decoder):
    """A model whose layers were run one by one over known windows; it answers for those windows alone."""

    def __init__(self, checkpoint: Checkpoint, windows: Sequence[Sequence[int]], machine: Machine) -> None:
        self.config = checkpoint.config
        self.checkpoint = checkpoint
        self._windows = [tuple(ids) for ids in windows]
        embedding, rotary = load_embedding(checkpoint, "cpu"), Rotary(checkpoint.config)
        device = torch.device(machine.device)
        self._batches = _batches([len(ids) for ids in windows])
        self._states = [embedding(torch.tensor(_joined(self._windows, batch))).to(device) for batch in self._batches]
        positions = [torch.cat([torch.arange(len(windows[at])) for at in batch]) for batch in self._batches]
        self._rotations = [rotary.at(at).to(device) for at in positions]
        self._norm, self._output = load_head(checkpoint, machine.device, machine.dtype)

    def step(self, layer: DecoderLayer, observe: Observe | None = None) -> None:
        """Run the next layer over all windows."""
        for index, batch in enumerate(self._batches):
            attend = causal([len(self._windows[at]) for at in batch])
            states = layer.attention_block(self._states[index], self._rotations[index], attend, observe)
            self._states[index] = layer.ffn_block(states, observe)

    def states(self, window: int) -> Tensor:
        """Return the residual stream (T, D) f32 of a window after the last step."""
        for batch, states in zip(self._batches, self._states, strict=True):
            if window in batch:
                sizes = [len(self._windows[at]) for at in batch]
                return torch.split(states, sizes)[batch.index(window)]
        raise AssertionError(f"window {window} of {len(self._windows)}")

    def forward(self, input_ids: Tensor, positions: Tensor, attend_of_layer: Callable[[int], Attend]) -> Tensor:
        """Return the residual stream (T, D) f32 of a known window."""
        return self.states(self._windows.index(tuple(input_ids.tolist())))

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Return (T, V) f32 for (T, D) f32."""
        states = rms_norm(hidden_states.to(self._norm.device), self._norm, self.config.rms_norm_eps)
        return self._output(states)[0]


@dataclass
class Streamed:
    """A candidate after the run. errors: of every linear by module name."""

    decoder: StreamedDecoder
    errors: dict[str, float] = field(default_factory=dict)


@torch.inference_mode()
def run_layers(
    source: Checkpoint,
    candidates: Sequence[Checkpoint],
    windows: Sequence[Sequence[int]],
    machine: Machine,
    on_layer: OnLayer | None = None,
) -> tuple[StreamedDecoder, list[Streamed]]:
    """Run all models over the windows, and hold every linear of a candidate against the source's."""
    reference = StreamedDecoder(source, windows, machine)
    streams = [Streamed(StreamedDecoder(candidate, windows, machine)) for candidate in candidates]
    num_tokens, num_layers = sum(map(len, windows)), source.config.num_hidden_layers
    for index in range(num_layers):
        inputs = _Inputs(source.config, num_tokens)
        layer = load_layer(source, index, machine.device, machine.dtype)
        reference.step(layer, inputs)
        for stream in streams:
            own = load_layer(stream.decoder.checkpoint, index, machine.device, machine.dtype)
            stream.errors |= layer_errors((source, layer), (stream.decoder.checkpoint, own), index, inputs.taken())
            stream.decoder.step(own)
        if on_layer is not None:
            on_layer(index + 1, num_layers)
    states = torch.cat([reference.states(at) for at in range(len(windows))])
    sample = states[:: max(1, num_tokens // HEAD_TOKENS)]
    ids = torch.tensor(sorted({token for window in windows for token in window}))
    for stream in streams:
        stream.errors |= edge_errors(reference, stream.decoder, sample, ids)
    return reference, streams


class _Inputs:
    """An `Observe` that keeps evenly taken rows of every input of the source's linears."""

    def __init__(self, config: ModelConfig, num_tokens: int) -> None:
        self._step = max(1, num_tokens // SAMPLE_TOKENS)
        share = config.num_experts_per_tok / config.num_experts if config.num_experts else 1.0
        self._expert_step = max(1, int(num_tokens * share) // SAMPLE_TOKENS)
        self._rows: dict[Key, list[Tensor]] = {}

    def __call__(self, role: Role, expert: int | None, x: Tensor, tokens: Tensor | None) -> bool:
        if role is not Role.ROUTER:
            step = self._step if expert is None else self._expert_step
            self._rows.setdefault((role, expert), []).append(x[::step].clone())
        return False

    def taken(self) -> dict[Key, Tensor]:
        """Return (S, K) f32 of every input that was seen."""
        return {key: torch.cat(rows) for key, rows in self._rows.items()}


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Group neighbouring windows up to BATCH_TOKENS; a longer one runs alone."""
    batches: list[list[int]] = []
    used = 0
    for index, length in enumerate(lengths):
        if not batches or used + length > BATCH_TOKENS:
            batches.append([])
            used = 0
        batches[-1].append(index)
        used += length
    return batches


def _joined(windows: Sequence[Sequence[int]], batch: list[int]) -> list[int]:
    return [token for at in batch for token in windows[at]]
