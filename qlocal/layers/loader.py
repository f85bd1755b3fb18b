"""Fill decoder layers from a checkpoint, and a whole model by a Plan. Neutral weights are dropped once prepared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from qlocal.devices import give_back_freed_memory, local_name
from qlocal.errors import UnsupportedError
from qlocal.formats.base import Checkpoint
from qlocal.layers.decoder import Decoder, DecoderLayer
from qlocal.layers.embedding import Embedding
from qlocal.layers.head import hold
from qlocal.layers.linear import Placement, QuantLinear, vector
from qlocal.layers.seat import Seat, read_part
from qlocal.models.base import Role, TensorSpec
from qlocal.models.long_context import stretched
from qlocal.plan import Plan, head_of
from qlocal.tensor_split import Share
from qlocal.weights import DenseWeight, Weight

OnProgress = Callable[[int, int, int | None], None]
"""Called with (bytes read, bytes in all) after every layer."""

LAST_LAYERS = 2
"""Layers in which massive activations are taken back: what is left beside those must not be rounded coarsely."""

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"


def load_layer(
    checkpoint: Checkpoint,
    layer: int,
    device: str | torch.device,
    dtype: str,
    kernels: str = "auto",
    *,
    join: bool = False,
    expert_device: str | torch.device | None = None,
    seat: Seat | None = None,
) -> DecoderLayer:
    """Return decoder layer `layer`, computing on `device` with matmul inputs in `dtype` (bfloat16, float32).

    join: compute q/k/v and gate/up in one kernel call each; such a layer's weights cannot be replaced.
    expert_device: where the experts of a mixture compute; None for `device`. seat: load one rank's part of a tensor
    split, which is joined.
    """
    config, start_adding_up, exchange = checkpoint.config, None, None
    if seat is not None:
        config, exchange = seat.share.config(config), seat.exchange
        start_adding_up = seat.collectives.start_adding_up
    keeps_words = layer >= config.num_hidden_layers - LAST_LAYERS
    placement = Placement(torch.device(device), dtype, kernels, keeps_words=keeps_words)
    experts = None if expert_device is None else replace(placement, device=torch.device(expert_device))
    filled = DecoderLayer(config, placement, experts, start_adding_up, exchange)
    specs = list(checkpoint.architecture.layer_tensors(checkpoint.config, layer))
    biases = {spec.module: spec.name for spec in specs if spec.is_bias}
    joined: dict[QuantLinear, list[TensorSpec]] = {}
    for spec in specs:
        if spec.is_bias:
            continue
        if spec.role in (Role.INPUT_NORM, Role.POST_ATTENTION_NORM) or not (join or seat):
            filled.replace(spec.role, spec.expert, checkpoint.read(spec.name), _bias(checkpoint, biases, spec))
        else:
            joined.setdefault(filled.linear(spec.role, spec.expert)[0], []).append(spec)
    share = None if seat is None else seat.share
    for linear, parts in joined.items():  # the table lists the parts in the order of the linear
        held = [read_part(checkpoint, s, s.role, share) for s in parts]
        weights, vectors = [h.weight for h in held], [_bias(checkpoint, biases, s, share) for s in parts]
        linear.fill(weights, vectors, held[0].inputs)  # what has several parts is cut by rows: its inputs are in order
    return filled


def load_model(
    checkpoint: Checkpoint,
    plan: Plan,
    kernels: str = "auto",
    on_progress: OnProgress | None = None,
    seat: Seat | None = None,
) -> Decoder:
    """Load everything to where `plan` puts it, a layer at a time; with a seat, one rank's part of a tensor split.

    UnsupportedError for cards that torch cannot use.
    """
    _check_cards(plan)
    if seat is not None:
        return _load_part(checkpoint, plan, kernels, on_progress, seat)
    config, progress = stretched(checkpoint.config, plan.yarn_factor), _Progress(checkpoint, on_progress)
    _will_read(checkpoint, 0)
    embedding = load_embedding(checkpoint, plan.embedding_device)
    progress.add(None)
    layers = []
    for index in range(config.num_hidden_layers):
        _will_read(checkpoint, index + 1 if index + 1 < config.num_hidden_layers else None)
        device, experts = plan.device_of_layer(index), plan.device_of_experts(index)
        layers.append(load_layer(checkpoint, index, device, plan.dtype, kernels, join=True, expert_device=experts))
        progress.add(index)
    weight, held_head = hold(read_head(checkpoint), plan.head)
    norm, head = load_head(checkpoint, plan.head_device, plan.dtype, kernels, weight)
    give_back_freed_memory()
    return Decoder(config, embedding, layers, norm, head, held_head)


def _load_part(checkpoint: Checkpoint, plan: Plan, kernels: str, on_progress: OnProgress | None, seat: Seat) -> Decoder:
    share, progress = seat.share, _Progress(checkpoint, on_progress)
    device = local_name(plan.devices[share.rank].device)
    config = share.config(stretched(checkpoint.config, plan.yarn_factor))
    embedding = load_embedding(checkpoint, plan.embedding_device)
    progress.add(None)
    layers = []
    for index in range(config.num_hidden_layers):
        layers.append(load_layer(checkpoint, index, device, plan.dtype, kernels, seat=seat))
        progress.add(index)
    rows = read_part(checkpoint, head_of(checkpoint).spec, Role.HEAD, share).weight
    weight, held_head = hold(rows, plan.head, seat.collectives.add_up_exactly)
    norm, head = load_head(checkpoint, device, plan.dtype, kernels, weight)
    give_back_freed_memory()
    return Decoder(config, embedding, layers, norm, head, held_head, seat.join_logits)


def _will_read(checkpoint: Checkpoint, layer: int | None) -> None:
    """Have the tensors of a layer, or those of none, come from the disk while the layer before is prepared."""
    for name, stored in checkpoint.tensors.items():
        if stored.spec.layer == layer:
            checkpoint.will_read(name)


def _check_cards(plan: Plan) -> None:
    cards = [part.device for part in plan.devices if part.device.startswith("cuda")]
    if cards and not torch.cuda.is_available():
        raise UnsupportedError(
            f"{cards[0]} cannot be used: PyTorch {torch.__version__} finds no CUDA",
            hint="Install a PyTorch that was built for CUDA, or take --devices cpu.",
        )


def load_embedding(checkpoint: Checkpoint, device: str | torch.device) -> Embedding:
    """Return the token embedding; on the CPU it stays mapped from the file."""
    weight, target = checkpoint.read(EMBEDDING), torch.device(device)
    if target.type != "cpu":
        weight = _moved(weight, target)
    return Embedding(weight, target)


def load_head(
    checkpoint: Checkpoint,
    device: str | torch.device,
    dtype: str,
    kernels: str = "auto",
    weight: Weight | None = None,
) -> tuple[Tensor, QuantLinear]:
    """Return the final norm (D,) f32 and the output head: `weight`, or as it is stored."""
    target, weight = torch.device(device), read_head(checkpoint) if weight is None else weight
    # Rows that are scored count as many tokens, and their logits are what is asked for: they are not rounded to 8 bits.
    placement = Placement(target, dtype, kernels, keeps_words=True)
    head = QuantLinear(checkpoint.config.hidden_size, (weight.shape[0],), placement)
    head.fill([weight], [None])
    return vector(checkpoint.read(FINAL_NORM), target), head


def read_head(checkpoint: Checkpoint) -> Weight:
    """Return the output head as it is stored, which is the embedding where they are tied."""
    return checkpoint.read(head_of(checkpoint).spec.name)


def _bias(
    checkpoint: Checkpoint, biases: dict[str, str], spec: TensorSpec, share: Share | None = None
) -> DenseWeight | None:
    if spec.module not in biases or not (share is None or share.adds_bias(spec.role)):
        return None
    bias = read_part(checkpoint, checkpoint.tensors[biases[spec.module]].spec, spec.role, share).weight
    assert isinstance(bias, DenseWeight), "opening a checkpoint refuses quantized biases"
    return bias


def _moved(weight: Weight, device: torch.device) -> Weight:
    """Return `weight` with all its tensors on `device`."""
    values = {f.name: getattr(weight, f.name) for f in fields(weight)}
    moved: dict[str, Any] = {n: v.to(device) for n, v in values.items() if isinstance(v, Tensor)}
    return replace(weight, **moved)


class _Progress:
    """Counts the bytes of tensors whose layer is loaded."""

    def __init__(self, checkpoint: Checkpoint, on_progress: OnProgress | None) -> None:
        self._bytes: dict[int | None, int] = {}
        for stored in checkpoint.tensors.values():
            self._bytes[stored.spec.layer] = self._bytes.get(stored.spec.layer, 0) + stored.num_bytes
        self._total, self._done, self._on_progress = sum(self._bytes.values()), 0, on_progress

    def add(self, layer: int | None) -> None:
        self._done += self._bytes.get(layer, 0)
        if self._on_progress is not None:
            self._on_progress(self._done, self._total, layer)
