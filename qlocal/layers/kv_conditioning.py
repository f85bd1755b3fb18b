"""Measures what a packed cache needs to know of every layer: once, at load, by a few made-up tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qlocal.cache.conditioning import Conditioning
from qlocal.cache.storage import DENSE_DTYPES, KVStorage
from qlocal.layers.attention import Attend, causal
from qlocal.layers.decoder import Decoder, DecoderLayer
from qlocal.layers.rotary import Rotary

if TYPE_CHECKING:
    from qlocal.plan import Plan

NUM_TOKENS = 256
FREQUENT = 5000
"""Ids below are the vocabulary's common pieces, whichever tokenizer it is. Own text is 3 % better, random ids over the
whole vocabulary are as good for keys and a tenth worse for values."""
SINKS = 4
"""First tokens, on which attention rests whatever they say: their keys and values are like no other's."""


def is_packed(plan: Plan) -> bool:
    """Say whether keys or values of a plan are of a type that rounds by constants of the model."""
    return not {plan.key_type, plan.value_type} <= DENSE_DTYPES.keys()


def storage_for(decoder: Decoder, plan: Plan, constants: Tensor | None = None) -> KVStorage:
    """Return the cache for the heads that `decoder` has, beside its layers. constants: what packed types need to know,
    as `measure_constants` returns it; None measures it where it is needed."""
    from qlocal.plan.demand import types_of_layer  # not needed without a plan, which needs the formats

    config = decoder.config
    if constants is None and is_packed(plan):
        constants = measure_constants(decoder)
    return KVStorage(
        [str(layer.device) for layer in decoder.layers],
        plan.num_blocks,
        plan.block_size,
        config.num_key_value_heads,
        config.head_dim,
        [types_of_layer(index, plan.key_type, plan.value_type) for index in range(config.num_hidden_layers)],
        None if constants is None else conditioned(decoder, constants),
    )


def measure(decoder: Decoder) -> list[Conditioning]:
    """Return the conditioning of every layer, by constants that are measured now."""
    return conditioned(decoder, measure_constants(decoder))


@torch.inference_mode()
def measure_constants(decoder: Decoder) -> Tensor:
    """Return (L, 3, Hk, Dh) f32 on the host: of every layer and head of `decoder` key_scale, value_mean, value_scale.

    Costs one prompt of so many tokens. Of a tensor split every rank calls it at the same time: what is measured takes
    the sums of all."""
    upper = min(FREQUENT, decoder.config.vocab_size)
    ids = torch.randint(0, upper, (NUM_TOKENS,), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(NUM_TOKENS)
    found: dict[int, Tensor] = {}

    def recording(index: int) -> Attend:
        attend = causal([NUM_TOKENS])

        def record(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            found[index] = _constants(decoder.layers[index], decoder.rotary, q, k, v)
            return attend(q, k, v)

        return record

    decoder.forward(ids, positions, recording)
    return torch.stack([found[index] for index in range(len(decoder.layers))])


def conditioned(decoder: Decoder, constants: Tensor) -> list[Conditioning]:
    """Return the conditioning of every layer, beside it. constants: as `measure_constants` returns them."""

    def rotate(x: Tensor, positions: Tensor) -> Tensor:
        return decoder.rotary.at(positions).apply(x)

    def of_layer(layer: DecoderLayer, own: Tensor) -> Conditioning:
        key_scale, value_mean, value_scale = own.to(layer.device).unbind()
        return Conditioning(key_bias(layer), key_scale, value_mean, value_scale, rotate)

    return [of_layer(layer, own) for layer, own in zip(decoder.layers, constants, strict=True)]


def _constants(layer: DecoderLayer, rotary: Rotary, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q: (T, H, Dh), k and v: (T, Hk, Dh), rotated. Returns (3, Hk, Dh) f32 on the host."""
    bias, shape = key_bias(layer), k.shape[1:]
    if bias is not None:
        k = k - rotary.at(torch.arange(len(k), device=k.device)).apply(bias.expand(k.shape))
    query_energy = _of_pairs(q).view(shape[0], -1, shape[1] // 2).mean(1)
    key_scale = _scale((query_energy / _of_pairs(k)) ** 0.25).repeat(1, 2)
    values = v[SINKS:]
    value_scale = _scale(values.std(0) ** -0.5)
    return torch.stack([key_scale, values.mean(0), value_scale]).float().cpu()


def _scale(scale: Tensor) -> Tensor:
    """Return (Hk, n) scales around 1, without what is no number and without extremes."""
    scale = scale.nan_to_num(nan=1.0, posinf=1.0).clamp_min(2**-20)
    return (scale / scale.log().mean(-1, keepdim=True).exp()).clamp(2**-6, 2**6)


def key_bias(layer: DecoderLayer) -> Tensor | None:
    """Return the bias of `k_proj` as (Hk, Dh) f32, or None."""
    bias = layer.qkv.bias()
    if bias is None:
        return None
    config = layer.config
    size = layer.qkv.out_features[1]
    return bias[config.q_size : config.q_size + size].view(-1, config.head_dim)


def _of_pairs(x: Tensor) -> Tensor:
    """Return the mean square of every pair of (T, H, Dh) over all but the first tokens, (H, Dh / 2)."""
    first, second = x[SINKS:].chunk(2, -1)
    return (first.square() + second.square()).mean(0)
