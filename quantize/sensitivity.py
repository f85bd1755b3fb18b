"""How far the source's predictions move when one tensor alone is quantized: measured, for all tensors in one pass.

Every tensor has a residual stream of its own over the same few windows, in which it alone is in a small type. A layer
is read once and run over all streams that have begun by then, so a model is streamed once, as in the gate; the streams
lie in a mapped scratch file. Everything is computed in float32: what single tensors change is often less than what
rounding activations to bfloat16 does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from qlocal.ggml_types import GgmlType
from qlocal.kernels.reference import dequantize
from qlocal.layers.attention import causal
from qlocal.layers.decoder import DecoderLayer
from qlocal.layers.embedding import Embedding
from qlocal.layers.ffn import Observe
from qlocal.layers.loader import load_embedding, load_head, load_layer, read_head
from qlocal.layers.norm import rms_norm
from qlocal.layers.rotary import Rotary
from qlocal.models.base import Role, TensorSpec
from qlocal.weights import DenseWeight
from quantize.calibration.hidden_states import HiddenStates
from quantize.calibration.recorder import INPUT_OF, Key, Recorder, Wanted, all_inputs
from quantize.gate.streaming import BATCH_TOKENS, OnLayer
from quantize.methods.ggml import quantize_ggml
from quantize.source import PaddedSource
from quantize.type_choice import MAX_LENGTH, MAX_WINDOWS, Sensitivity, candidate_types, is_chosen

SAMPLE_ROWS = 256
"""Rows of a weight that the errors of its types are compared on."""
LIKELIEST = 1024
"""Tokens of the vocabulary that predictions are compared over: those that the source finds likeliest at each place."""
MAX_TABLE_ELEMENTS = 1 << 26
"""Elements of head rows, one a likely token and place, that are held at once: 256 MB."""
DTYPE = "float32"


@torch.inference_mode()
def measure(
    source: PaddedSource, ids: Tensor, scratch: Path, device: str, on_layer: OnLayer | None = None
) -> list[Sensitivity]:
    """Measure every tensor that may have one of several types. ids: (S, L) windows, of which the first few are taken,
    evenly; scratch: where the streams lie meanwhile."""
    step = max(1, len(ids) // MAX_WINDOWS)
    run = _Run(source, ids[::step][:MAX_WINDOWS, :MAX_LENGTH], scratch, torch.device(device))
    try:
        run.embed()
        for layer in range(source.config.num_hidden_layers):
            run.layer(layer)
            if on_layer is not None:
                on_layer(layer + 1, source.config.num_hidden_layers)
        return run.finish()
    finally:
        run.close()


class _Run:
    """Stream 0 is the source's own; `_names[i]` is the tensor that stream i + 1 has in its small type."""

    def __init__(self, source: PaddedSource, ids: Tensor, scratch: Path, device: torch.device) -> None:
        self._source, self._config, self._ids, self._device = source, source.config, ids, device
        self._specs: dict[str, list[TensorSpec]] = {}
        for spec in source.architecture.tensors(source.config):
            if is_chosen(spec):
                self._specs.setdefault(spec.gguf_name, []).append(spec)
        self._streams = HiddenStates(
            scratch, (1 + len(self._specs), ids.numel(), source.config.hidden_size), create=True
        )
        self._names: list[str] = []
        self._errors: dict[str, dict[GgmlType, float]] = {}
        self._small_heads: dict[str, Embedding] = {}
        self._at_once = max(1, BATCH_TOKENS // ids.numel())
        positions = torch.arange(ids.shape[1], device=device).repeat(self._at_once * len(ids))
        self._rotation = Rotary(source.config).at(positions)

    def embed(self) -> None:
        """Begin the source's stream, and that of the embedding."""
        ids = self._ids.flatten()
        embedding = load_embedding(self._source, "cpu")
        self._streams[0] = embedding(ids)
        for name, (spec,) in self._of_role(Role.EMBEDDING):
            small = self._small_table(spec)
            self._begin(name, small(ids))
            if self._config.tie_word_embeddings:
                self._small_heads[name] = small

    def layer(self, index: int) -> None:
        """Run a layer over all streams, and begin those of its own tensors."""
        layer = load_layer(self._source, index, self._device, DTYPE)
        clean = self._streams[0].to(self._device, copy=True)
        means = self._record(layer, clean)
        begun = 1 + len(self._names)
        for start in range(1, begun, self._at_once):
            streams = slice(start, min(start + self._at_once, begun))
            states = self._forward(layer, self._streams[streams].flatten(0, 1).to(self._device))
            self._streams[streams] = states.cpu().view(-1, *self._streams.shape[1:])
        for name, specs in self._specs.items():
            if specs[0].layer == index:
                self._measure_linear(layer, name, specs, means, clean)

    def finish(self) -> list[Sensitivity]:
        """Compare the predictions of all streams with the source's."""
        norm, head = load_head(self._source, self._device, DTYPE)
        for name, (spec,) in self._of_role(Role.HEAD):
            self._small_heads[name] = self._small_table(spec)
            self._begin(name, self._streams[0])
        table = Embedding(read_head(self._source), torch.device("cpu"))
        kl = torch.zeros(len(self._names))
        tokens_at_once = max(1, MAX_TABLE_ELEMENTS // (LIKELIEST * self._config.hidden_size))
        for start in range(0, self._ids.numel(), tokens_at_once):
            states = self._streams[: 1 + len(self._names)][:, start : start + tokens_at_once].to(self._device)
            states = rms_norm(states, norm, self._config.rms_norm_eps).transpose(0, 1)  # (T, 1 + streams, D)
            ids = head(states[:, 0])[0].topk(min(LIKELIEST, self._config.vocab_size)).indices  # (T, likeliest)
            logits = states @ self._rows(table, ids).mT
            for name, small in self._small_heads.items():
                at = 1 + self._names.index(name)
                logits[:, at] = (self._rows(small, ids) @ states[:, at].unsqueeze(-1)).squeeze(-1)
            log_p = logits.log_softmax(-1)
            kl += (log_p[:, :1].exp() * (log_p[:, :1] - log_p[:, 1:])).sum((0, 2)).cpu()
        kl = kl.clamp(min=0.0) / self._ids.numel()
        return [self._sensitivity(name, worth) for name, worth in zip(self._names, kl.tolist(), strict=True)]

    def close(self) -> None:
        self._streams.remove()

    def _measure_linear(
        self, layer: DecoderLayer, name: str, specs: list[TensorSpec], means: dict[Key, Tensor], clean: Tensor
    ) -> None:
        """Begin the stream of a linear, of all its experts at once; the layer is as before afterwards."""
        biases = {spec: self._source.bias_of(spec) for spec in specs}
        for spec in specs:
            importance = means.get((INPUT_OF[spec.role], spec.expert))
            layer.replace(spec.role, spec.expert, self._small(spec, importance), biases[spec])
        self._begin(name, self._forward(layer, clean).cpu())
        for spec in specs:
            layer.replace(spec.role, spec.expert, self._source.read(spec.name), biases[spec])

    def _small(self, spec: TensorSpec, importance_K: Tensor | None) -> DenseWeight:
        """Return the values of a weight in its smallest type; notes what all its types lose."""
        weight = self._source.read(spec.name).data
        types = candidate_types(spec.shape[-1])
        rows = weight[:: max(1, len(weight) // SAMPLE_ROWS)]
        errors = self._errors.setdefault(spec.gguf_name, dict.fromkeys(types, 0.0))
        for ggml_type in types:
            errors[ggml_type] += quantize_ggml(rows, ggml_type, importance_K).loss
        return DenseWeight(dequantize(quantize_ggml(weight, types[0], importance_K).weight).bfloat16())

    def _small_table(self, spec: TensorSpec) -> Embedding:
        """Return the rows of an embedding or a head in its smallest type."""
        return Embedding(self._small(spec, None), torch.device("cpu"))

    def _rows(self, table: Embedding, ids: Tensor) -> Tensor:
        """Return the rows (T, likeliest, D) f32 of a head for tokens (T, likeliest)."""
        return table(ids.flatten().cpu()).view(*ids.shape, -1).to(self._device)

    def _record(self, layer: DecoderLayer, clean: Tensor) -> dict[Key, Tensor]:
        """Run the layer over the source's own stream; returns the mean square (K,) of every input that was seen."""
        recorder = Recorder(self._config, dict.fromkeys(all_inputs(self._config), Wanted()))
        self._streams[0] = self._forward(layer, clean, recorder.observe).cpu()
        return {key: stats.mean_square_K for key, stats in recorder.stats.items() if stats.tokens}

    def _forward(self, layer: DecoderLayer, states: Tensor, observe: Observe | None = None) -> Tensor:
        """Run a layer over whole streams. states: (n * T, D) f32 on the device."""
        length = self._ids.shape[1]
        attend = causal([length] * (len(states) // length))
        states = layer.attention_block(states, self._rotation.rows(0, len(states)), attend, observe)
        return layer.ffn_block(states, observe)

    def _begin(self, name: str, states: Tensor) -> None:
        self._names.append(name)
        self._streams[len(self._names)] = states

    def _of_role(self, role: Role) -> Iterator[tuple[str, list[TensorSpec]]]:
        yield from ((name, specs) for name, specs in self._specs.items() if specs[0].role is role)

    def _sensitivity(self, name: str, kl: float) -> Sensitivity:
        spec, *others = self._specs[name]
        shape = spec.shape if spec.expert is None else (1 + len(others), *spec.shape)
        return Sensitivity(name, shape, candidate_types(spec.shape[-1])[0], kl, self._errors[name])
