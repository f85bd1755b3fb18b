"""Made-up weights and models, drawn on the device from a seed: nothing is downloaded, and a 72B takes seconds."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

import torch

from qlocal.cache.storage import KVStorage
from qlocal.ggml_types import LAYOUTS, GgmlType, row_bytes
from qlocal.layers.decoder import Decoder, DecoderLayer
from qlocal.layers.embedding import Embedding
from qlocal.layers.ffn import Ffn
from qlocal.layers.kv_conditioning import measure
from qlocal.layers.linear import Placement, QuantLinear
from qlocal.models.base import ModelConfig
from qlocal.weights import AffineWeight, BlockWeight, DenseWeight

GROUP_SIZE = 128
_EMBEDDING_ROWS = 1024
"""Ids are drawn below; a table of all rows would only take memory of the host."""

QWEN_72B = ModelConfig(
    model_type="qwen2",
    hidden_size=8192,
    intermediate_size=29568,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=152064,
    max_position_embeddings=32768,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
)
SMALL = replace(
    QWEN_72B,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    vocab_size=512,
)


@dataclass(frozen=True)
class MadeUp:
    """A source of weights on one device."""

    device: torch.device
    generator: torch.Generator

    @classmethod
    def of(cls, device: torch.device, seed: int = 0) -> MadeUp:
        return cls(device, torch.Generator(device).manual_seed(seed))

    def affine(self, rows: int, columns: int) -> AffineWeight:
        """Return int4 weights of 1 / sqrt(K), as large as those of a model."""
        groups = columns // GROUP_SIZE
        drawn = {"generator": self.generator, "device": self.device}
        scale = 1 / (6.5 * columns**0.5)
        return AffineWeight(
            codes=torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, **drawn),
            scales=(scale * (0.5 + torch.rand((rows, groups), **drawn))).half(),
            zero_points=torch.randint(0, 16, (rows, groups), dtype=torch.uint8, **drawn),
            group_size=GROUP_SIZE,
        )

    def blocks(self, ggml_type: GgmlType, rows: int, columns: int) -> BlockWeight:
        """Return blocks of any bits but their float16 scales, which are all alike."""
        shape = (rows, row_bytes(ggml_type, columns))
        data = torch.randint(0, 256, shape, generator=self.generator, device=self.device, dtype=torch.uint8)
        at = {GgmlType.Q4_K: (0, 2), GgmlType.Q5_K: (0, 2), GgmlType.Q6_K: (208,)}.get(ggml_type, (0,))
        scale = torch.frombuffer(bytearray(struct.pack("<e", 1e-3)), dtype=torch.uint8).to(self.device)
        blocks = data.view(-1, LAYOUTS[ggml_type].block_bytes)
        for first in at:
            blocks[:, first : first + 2] = scale
        return BlockWeight(data, ggml_type, columns)

    def dense(self, *shape: int) -> DenseWeight:
        noise = torch.randn(shape, generator=self.generator, device=self.device)
        return DenseWeight((noise / shape[-1] ** 0.5).bfloat16())


def decoder(config: ModelConfig, device: torch.device, num_layers: int, kernels: str = "auto") -> Decoder:
    """Return a model of int4 weights with biases and an int8 head; the same numbers for the same device."""
    source, placement = MadeUp.of(device), Placement(device, "bfloat16", kernels)
    layers = [_layer(config, source, placement) for _ in range(num_layers)]
    head = QuantLinear(config.hidden_size, (config.vocab_size,), placement)
    head.fill([source.blocks(GgmlType.Q8_0, config.vocab_size, config.hidden_size)], [None])
    host = torch.Generator().manual_seed(1)
    table = torch.randn(min(_EMBEDDING_ROWS, config.vocab_size), config.hidden_size, generator=host).bfloat16()
    embedding = Embedding(DenseWeight(table), torch.device("cpu"))
    return Decoder(config, embedding, layers, torch.ones(config.hidden_size, device=device), head)


def _layer(config: ModelConfig, source: MadeUp, placement: Placement) -> DecoderLayer:
    layer = DecoderLayer(config, placement)
    layer.input_norm = torch.ones(config.hidden_size, device=source.device)
    layer.post_attention_norm = torch.ones(config.hidden_size, device=source.device)
    biases = [source.dense(size) for size in layer.qkv.out_features]
    assert isinstance(layer.ffn, Ffn), "no mixture is made up"
    for linear, bias in ((layer.qkv, biases), (layer.o, None), (layer.ffn.gate_up, None), (layer.ffn.down, None)):
        weights = [source.affine(rows, linear.in_features) for rows in linear.out_features]
        linear.fill(weights, bias or [None] * len(weights))
    return layer


def storage(model: Decoder, tokens: int, block_size: int, kinds: tuple[str, str]) -> KVStorage:
    """Return a cache for so many tokens beside the layers."""
    known = measure(model) if {"q8", "q4"} & set(kinds) else None
    devices, config = [str(layer.device) for layer in model.layers], model.config
    sizes = (-(-tokens // block_size), block_size, config.num_key_value_heads, config.head_dim)
    return KVStorage(devices, *sizes, [kinds] * len(devices), known)
