"""Neighbouring layers on one card, run by its kernels: ten launches a layer, and nothing is asked of the host.

What it computes is `decoder.py`; here sums stay in parts until the next kernel adds them up."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from qlocal.cache.storage import DENSE_DTYPES, KVStorage
from qlocal.kernels.dispatch import ASKED_FOR, why_no_card_kernels
from qlocal.kernels.native_step import KEY_TILE
from qlocal.kernels.triton.add_norm import add_norm
from qlocal.kernels.triton.attention import KeyAngles, longest_piece
from qlocal.kernels.triton.products import products
from qlocal.kernels.triton.rotary_store import Heads
from qlocal.kernels.triton.silu_mul import silu_mul
from qlocal.layers.card_attention import CardAttention, on_card
from qlocal.layers.card_inputs import StepInputs, StepLayout
from qlocal.layers.decoder import Decoder, DecoderLayer
from qlocal.layers.ffn import Ffn
from qlocal.layers.key_angles import key_angles
from qlocal.layers.linear import QuantLinear
from qlocal.layers.moe import MoeFfn
from qlocal.layers.native_decoder import describe_cache

HEAD_DIMS = (32, 64, 128, 256)
CACHE_TYPES = frozenset({"f16", "q8", "q4"})


Made = TypeVar("Made")
Stages = Generator[None, None, Made]
"""Work that stops wherever a sum over the ranks has begun, so that other work may go on meanwhile."""


@dataclass(frozen=True, eq=False)
class CardLayer:
    """A decoder layer and its attention. dtype: of the products' inputs."""

    layer: DecoderLayer
    attention: CardAttention
    dtype: torch.dtype

    def stages(self, stream: Tensor, normed: Tensor, inputs: StepInputs, layout: StepLayout) -> Stages[Tensor]:
        """Add attention to the residual stream (T, D) f32, in place, and return what the feed-forward block gives, in
        parts (S, T, D) f32. normed: (T, D), the input of q, k and v."""
        layer = self.layer
        parts = _product(normed, layer.qkv)
        attended = self.attention(parts, inputs, layout, self.dtype)
        is_mixture = isinstance(layer.ffn, MoeFfn)
        # The router decides by float32.
        normed_dtype = torch.float32 if is_mixture else self.dtype
        gives = _product(attended, layer.o)
        after = yield from self.add_norm(stream, gives, layer.post_attention_norm, normed_dtype)
        assert after is not None, "a norm was given"
        if isinstance(layer.ffn, MoeFfn):
            return layer.ffn(after)[None]
        return _product(silu_mul(_product(after, layer.ffn.gate_up), self.dtype), layer.ffn.down)

    def add_norm(
        self, stream: Tensor, gives: Tensor, weight: Tensor | None, dtype: torch.dtype
    ) -> Stages[Tensor | None]:
        """Add what this layer gives, (S, T, D) f32, to the residual stream, over all ranks of a tensor split; return
        its norm by `weight`, (T, D) of `dtype`, where one is given."""
        layer, eps = self.layer, self.layer.config.rms_norm_eps
        if layer.exchange is not None and layer.exchange.takes(len(stream)):
            return layer.exchange.add_norm(stream, gives.contiguous(), weight, eps, dtype)
        if layer.start_adding_up is not None:
            finish = layer.start_adding_up(gives[0] if len(gives) == 1 else gives.sum(0))
            yield
            gives = finish().contiguous()[None]
        return add_norm(stream, gives, weight, eps, dtype)


class CardSpan:
    """Layers `first` to `last` of a decoder, all on `device`."""

    def __init__(self, decoder: Decoder, storage: KVStorage, block_size: int, first: int, last: int) -> None:
        config = decoder.config
        self.first, self.last = first, last
        self.device = decoder.layers[first].device
        self.heads = Heads(config.num_attention_heads, config.num_key_value_heads, config.head_dim, block_size)
        self.hidden_size = config.hidden_size
        angles = _angles(decoder, storage, block_size, self.device, range(first, last))
        self._layers = [self._card_layer(decoder, storage, index, angles) for index in range(first, last)]
        layers = [card_layer.layer for card_layer in self._layers]
        self.adds_over_ranks = any(layer.start_adding_up is not None for layer in layers)
        self.is_mixture = any(isinstance(layer.ffn, MoeFfn) for layer in layers)
        self.has_host_work = self.is_mixture or any(x.start_adding_up and not x.exchange for x in layers)
        """Whether the host has a part in a step, so that it cannot be recorded: it asks which experts a mixture takes,
        and starts the sums over the ranks of a tensor split, unless an exchange makes them."""
        group = self.heads.num_heads // self.heads.num_kv_heads
        self.longest_piece = longest_piece(group, has_bias=angles is not None)

    def run(self, inputs: StepInputs, layout: StepLayout) -> Tensor:
        """Run the layers over `inputs`. Returns the residual stream (T, D) f32 after them, in the inputs' memory."""
        return self.run_together([(inputs, layout)])[0]

    def run_together(self, parts: Sequence[tuple[StepInputs, StepLayout]]) -> list[Tensor]:
        """Run the layers over the parts of a step, each a stage behind the one before it: while the ranks add up what
        one part gives, the next is computed. Returns the residual streams."""
        waiting = [self._stages(inputs, layout) for inputs, layout in parts]
        while waiting:
            waiting = [stages for stages in waiting if _goes_on(stages)]
        return [inputs.hidden_states for inputs, _ in parts]

    def _stages(self, inputs: StepInputs, layout: StepLayout) -> Stages[None]:
        stream, first = inputs.hidden_states, self._layers[0]
        normed = add_norm(stream, None, first.layer.input_norm, first.layer.config.rms_norm_eps, first.dtype)
        for card_layer, following in zip(self._layers, [*self._layers[1:], None], strict=True):
            assert normed is not None, "a norm was given"
            gives = yield from card_layer.stages(stream, normed, inputs, layout)
            norm = None if following is None else following.layer.input_norm
            dtype = card_layer.dtype if following is None else following.dtype
            normed = yield from card_layer.add_norm(stream, gives, norm, dtype)

    def _card_layer(self, decoder: Decoder, storage: KVStorage, index: int, angles: KeyAngles | None) -> CardLayer:
        layer, readable = decoder.layers[index], storage.layers[index]
        if readable.conditioning is not None and angles is not None:
            known = on_card(readable.conditioning, angles)
            readable = type(readable)(readable.keys, readable.values, known)
        attention = CardAttention(self.heads, describe_cache(readable), readable, layer.qkv.bias(), angles)
        return CardLayer(layer, attention, layer.qkv.parts()[0].weight.dtype)


def _goes_on(stages: Stages[None]) -> bool:
    """Go on to where a sum over the ranks has begun; return whether there is one."""
    return next(stages, stages) is not stages


def spans(decoder: Decoder, storage: KVStorage, block_size: int) -> list[CardSpan]:
    """Return the runs of neighbouring layers that a card's kernels can compute, one a card, in order."""
    found: list[CardSpan] = []
    fits = [_can_run(layer, storage, index, block_size) for index, layer in enumerate(decoder.layers)]
    first = 0
    for index, fit in enumerate([*fits, False]):
        is_end = not fit or (index > first and decoder.layers[index].device != decoder.layers[first].device)
        if is_end:
            if index > first:
                found.append(CardSpan(decoder, storage, block_size, first, index))
            first = index if fit else index + 1
    return found


def _can_run(layer: DecoderLayer, storage: KVStorage, index: int, block_size: int) -> bool:
    cache, config = storage.layers[index], layer.config
    linears = [layer.qkv, layer.o]
    if isinstance(layer.ffn, Ffn):
        linears += [layer.ffn.gate_up, layer.ffn.down]
    return (
        why_no_card_kernels(layer.device) is None
        and all(p.weight.matrix is None and p.weight.reason != ASKED_FOR for n in linears for p in n.parts())
        and all(part.bias is None for linear in linears[1:] for part in linear.parts())
        and config.head_dim in HEAD_DIMS
        and config.num_attention_heads % config.num_key_value_heads == 0
        and {cache.keys.type, cache.values.type} <= CACHE_TYPES
        and block_size % KEY_TILE == 0
        and block_size & (block_size - 1) == 0
    )


def _product(x: Tensor, linear: QuantLinear) -> Tensor:
    return products(linear.gathered(x), [part.weight for part in linear.parts()])


def _angles(
    decoder: Decoder, storage: KVStorage, block_size: int, device: torch.device, layers: Sequence[int]
) -> KeyAngles | None:
    """Return the angles of all positions where keys are held without their bias, or None where none are."""
    caches = [storage.layers[index] for index in layers]
    has_bias = any(
        cache.keys.type not in DENSE_DTYPES
        and cache.conditioning is not None
        and cache.conditioning.key_bias is not None
        for cache in caches
    )
    if not has_bias:
        return None
    num_positions = len(caches[0].keys.memory) * block_size
    return key_angles(decoder.rotary, num_positions, block_size, device)
