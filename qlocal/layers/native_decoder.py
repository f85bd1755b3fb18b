"""The layers of a Decoder as one native call a step, where the machine, the weights and the sizes allow it.

`decoder.py` is what it computes, in words that can be read; here the same layers are only described to the library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qlocal.cache.storage import KVStorage, LayerCache
from qlocal.kernels import native, native_step
from qlocal.kernels.dispatch import FEW_TOKENS
from qlocal.layers.decoder import Decoder, DecoderLayer
from qlocal.layers.ffn import Ffn
from qlocal.layers.linear import QuantLinear
from qlocal.layers.moe import MoeFfn
from qlocal.layers.paged_attention import PagedAttention, TokenRun
from qlocal.layers.rotary import Rotary, Rotation


class NativeDecoder:
    """Runs the first layers of `decoder` in one call, all of them or those that cards could not hold, and the others as
    `decoder` does. Made by `native_decoder`."""

    def __init__(
        self, decoder: Decoder, step: native_step.NativeStep, num_layers: int, storage: KVStorage, block_size: int
    ) -> None:
        """step: of the first `num_layers` layers, over the cache of `storage`."""
        self._decoder = decoder
        self._step = step
        self.num_layers = num_layers
        self._storage = storage
        self._block_size = block_size
        parts = [p for layer in decoder.layers[:num_layers] for linear in _linears(layer) for p in linear.parts()]
        self._takes_prompts = all(p.weight.matrix is not None and not p.weight.matrix.is_exact for p in parts)

    def takes(self, num_tokens: int) -> bool:
        """Say whether this is the way for a step of so many tokens: with many, torch reads exact weights quicker."""
        return self._takes_prompts or num_tokens <= FEW_TOKENS

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        runs: Sequence[TokenRun],
        between: Callable[[], None] | None = None,
    ) -> Tensor:
        """Do what `Decoder.forward` does over a block cache. input_ids and positions: (T,) int64.

        runs: stand one after another in T. between: is called before layers of the native step. Returns the residual
        stream (T, D) f32, unnormalized.
        """
        rotation = self._decoder.rotary.at(positions)
        hidden_states = self.run_first(self._decoder.embedding(input_ids).contiguous(), rotation, runs, between)
        if self.num_layers == len(self._decoder.layers):
            return hidden_states
        attention = PagedAttention(runs, self._storage, self._block_size)
        return self._decoder.run_layers(self.num_layers, hidden_states, rotation, attention.of_layer)

    def run_first(
        self,
        hidden_states: Tensor,
        rotation: Rotation,
        runs: Sequence[TokenRun],
        between: Callable[[], None] | None = None,
    ) -> Tensor:
        """Run the first `num_layers` layers alone. hidden_states: (T, D) f32, contiguous; changed, and returned."""
        described = [
            native_step.Run(run.length, run.num_past, torch.tensor(run.blocks, dtype=torch.int64)) for run in runs
        ]
        cos, sin = (angles.squeeze(1).contiguous() for angles in (rotation.cos, rotation.sin))
        self._step.run(hidden_states, cos, sin, described, between)
        return hidden_states


def native_decoder(decoder: Decoder, storage: KVStorage, block_size: int) -> NativeDecoder | None:
    """Return the native way to run `decoder`, or None where there is none: then its own forward is the way.

    It begins with the first layer and ends before one on a card. A model that computes in float32 has none: it is
    there to be exact and easily followed.
    """
    is_rounded = [all(p.weight.dtype == torch.bfloat16 for n in _linears(x) for p in n.parts()) for x in decoder.layers]
    ready = [rounded and _has_layout(layer) for rounded, layer in zip(is_rounded, decoder.layers, strict=True)]
    return describe(decoder, storage, block_size, [*ready, False].index(False))


def describe(
    decoder: Decoder, storage: KVStorage, block_size: int, num_layers: int | None = None
) -> NativeDecoder | None:
    """Describe the first `num_layers` of `decoder`, or all, to the library, whatever they compute in. None where there
    are none, or the library or a layout is missing."""
    library, config = native.load(), decoder.config
    if isinstance(library, native.Absent):
        return None
    geometry = native_step.Geometry(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        num_experts=config.num_experts,
        experts_per_token=config.num_experts_per_tok,
        block_size=block_size,
        rms_norm_eps=config.rms_norm_eps,
    )
    num_layers = len(decoder.layers) if num_layers is None else num_layers
    pairs = list(zip(decoder.layers, storage.layers, strict=True))[:num_layers]
    has_layout = all(_is_native(cache) and _has_layout(layer) for layer, cache in pairs)
    if native_step.unsupported(geometry) is not None or not pairs or not has_layout:
        return None
    layers = [_describe(layer, describe_cache(cache)) for layer, cache in pairs]
    num_positions = len(storage.layers[0].keys.memory) * block_size
    angles = None if all(layer.cache.key_bias is None for layer in layers) else _angles(decoder.rotary, num_positions)
    step = native_step.NativeStep(library, geometry, layers, angles)
    return NativeDecoder(decoder, step, num_layers, storage, block_size)


def _has_layout(layer: DecoderLayer) -> bool:
    """Whether every weight of a layer is one that the library reads."""
    linears = _linears(layer) + ([layer.ffn.router] if isinstance(layer.ffn, MoeFfn) else [])
    return all(part.weight.matrix is not None for linear in linears for part in linear.parts())


def _linears(layer: DecoderLayer) -> list[QuantLinear]:
    """Return all linears but the router, which is in float32 everywhere."""
    return [layer.qkv, layer.o, *(linear for block in _blocks(layer) for linear in (block.gate_up, block.down))]


def _blocks(layer: DecoderLayer) -> list[Ffn]:
    return layer.ffn.experts if isinstance(layer.ffn, MoeFfn) else [layer.ffn]


def _is_native(cache: LayerCache) -> bool:
    return {cache.keys.type, cache.values.type} <= set(native_step.KV_TYPES)


def describe_cache(cache: LayerCache) -> native_step.Cache:
    """Say where a layer's cache lies, and what is taken off before rounding."""
    keys, values, known = cache.keys, cache.values, cache.conditioning
    of_keys = known if keys.type != "f16" else None
    of_values = known if values.type != "f16" else None
    return native_step.Cache(
        keys.memory,
        values.memory,
        keys.type,
        values.type,
        key_bias=None if of_keys is None or of_keys.key_bias is None else of_keys.key_bias.contiguous(),
        key_scale=None if of_keys is None else of_keys.key_scale.contiguous(),
        value_mean=None if of_values is None else of_values.value_mean.contiguous(),
        value_scale=None if of_values is None else of_values.value_scale.contiguous(),
    )


def _angles(rotary: Rotary, num_positions: int) -> native_step.Angles:
    """Return what the angles of all positions are added from: of every tile's first one, and of the tile's lanes."""
    tile = native_step.KEY_TILE
    lanes = rotary.at(torch.arange(tile))
    factor = lanes.cos[0, 0, 0]  # the attention factor: the angle is 0
    of_lanes = torch.cat((lanes.cos, lanes.sin), -1).squeeze(1).T / factor
    tiles = rotary.at(torch.arange(0, num_positions, tile))
    return native_step.Angles(torch.cat((tiles.cos, tiles.sin), -1).squeeze(1).contiguous(), of_lanes.contiguous())


def _describe(layer: DecoderLayer, cache: native_step.Cache) -> native_step.Layer:
    router: QuantLinear | None = layer.ffn.router if isinstance(layer.ffn, MoeFfn) else None
    return native_step.Layer(
        input_norm=layer.input_norm,
        post_attention_norm=layer.post_attention_norm,
        qkv=layer.qkv.parts(),
        o=layer.o.parts(),
        router=[] if router is None else router.parts(),
        feed_forwards=[(block.gate_up.parts(), block.down.parts()) for block in _blocks(layer)],
        cache=cache,
    )
