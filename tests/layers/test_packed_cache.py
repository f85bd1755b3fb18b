"""The native step over a packed cache computes what the readable one does, and rounds alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qlocal.kernels import native
from qlocal.layers import kv_conditioning
from qlocal.layers.decoder import Decoder
from qlocal.layers.loader import load_embedding, load_head, load_layer
from qlocal.layers.native_decoder import describe
from qlocal.layers.paged_attention import TokenRun
from qlocal.models.base import Role
from tests.layers.test_native_decoder import (
    BLOCK,
    LONG,
    SHORT,
    distance,
    native_forward,
    plain_forward,
    sides,
    storage_of,
)
from tests.layers.test_native_decoder import isa as isa  # a fixture
from tests.memory_checkpoint import MemoryCheckpoint, random_ids

KINDS = [("q8", "q8"), ("q8", "q4"), ("q4", "q4"), ("f16", "q4"), ("q4", "f16")]
HEADS = {"MHA": (8, 8), "GQA": (8, 2), "one KV head of 96": (6, 1)}


def decoder_of(model_type: str, heads: str = "GQA", bias: float = 0.0) -> Decoder:
    """Return a tiny decoder in float32. bias: what the largest key bias is about."""
    count, kv_count = HEADS[heads]
    head_dim = 96 if kv_count == 1 else 32
    sizes = {
        "hidden_size": count * head_dim,
        "intermediate_size": 512,
        "num_attention_heads": count,
        "num_key_value_heads": kv_count,
        "vocab_size": 320,
    }
    checkpoint = MemoryCheckpoint(model_type, sizes)
    for spec in checkpoint.architecture.tensors(checkpoint.config):
        if spec.role is Role.K and spec.is_bias and bias:
            checkpoint.values[spec.name].normal_(generator=torch.Generator().manual_seed(1)).mul_(bias / 3)
    layers = [
        load_layer(checkpoint, i, "cpu", "float32", join=True) for i in range(checkpoint.config.num_hidden_layers)
    ]
    return Decoder(
        checkpoint.config, load_embedding(checkpoint, "cpu"), layers, *load_head(checkpoint, "cpu", "float32")
    )


def within(isa: native.Isa) -> float:
    """A value between two codes may fall to either side. AMX has 16 bits of a query, which a bias of 300 magnifies."""
    return 1e-2 if isa is native.Isa.AMX else 2e-3


def read_all(storage_layer: object, table: list[int], tokens: int) -> tuple[Tensor, Tensor]:
    return storage_layer.read(torch.tensor(table), tokens)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("model_type", "bias"), [("llama", 0.0), ("qwen2", 0.0), ("qwen2", 300.0)])
@pytest.mark.parametrize("types", KINDS, ids=",".join)
def test_a_step_over_a_packed_cache_equals_the_plain_one(
    isa: native.Isa, types: tuple[str, str], model_type: str, bias: float, heads: str
) -> None:
    """Over a cache that the reference has written: several runs, blocks begun, tiles and tokens of a run left over."""
    decoder = decoder_of(model_type, heads, bias)
    plain, fast = storage_of(decoder, *types), storage_of(decoder, *types)
    step = describe(decoder, fast, BLOCK)
    assert step is not None
    runs = [TokenRun(530, 0, LONG), TokenRun(45, 0, SHORT)]
    plain_forward(decoder, plain, random_ids(320, 575), runs)
    for runs in ([TokenRun(1, 530, LONG)], [TokenRun(5, 531, LONG), TokenRun(3, 45, SHORT)], [TokenRun(40, 536, LONG)]):
        for mine, theirs in zip(sides(fast), sides(plain), strict=True):
            mine.copy_(theirs)
        ids = random_ids(320, sum(run.length for run in runs), seed=len(runs))
        expected = plain_forward(decoder, plain, ids, runs)
        assert distance(native_forward(step, fast, ids, runs), expected) < within(isa)
        for mine, theirs in zip(fast.layers, plain.layers, strict=True):
            for own, other in zip(read_all(mine, LONG, 530), read_all(theirs, LONG, 530), strict=True):
                assert distance(own, other) < 0.01


@pytest.mark.parametrize("types", KINDS, ids=",".join)
def test_a_prompt_is_rounded_as_the_reference_rounds_it(isa: native.Isa, types: tuple[str, str]) -> None:
    decoder = decoder_of("qwen2", bias=300.0)
    plain, fast = storage_of(decoder, *types), storage_of(decoder, *types)
    step = describe(decoder, fast, BLOCK)
    assert step is not None
    runs, ids = [TokenRun(77, 0, LONG)], random_ids(320, 77)
    expected = plain_forward(decoder, plain, ids, runs)
    assert distance(native_forward(step, fast, ids, runs), expected) < within(isa)
    mine, theirs = (read_all(cache.layers[0], LONG, 77) for cache in (fast, plain))
    assert all(distance(own, other) < 2e-3 for own, other in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("kind", ["q8", "q4"])
def test_a_key_bias_costs_nothing(kind: str) -> None:
    """What is lost of keys by rounding is the same with a bias of 300 as without one."""
    lost = []
    for bias in (0.0, 300.0):
        decoder = decoder_of("qwen2", bias=bias)
        cache, known = storage_of(decoder, kind, kind).layers[0], kv_conditioning.key_bias(decoder.layers[0])
        assert known is not None
        positions, keys = torch.arange(40), torch.randn(40, *known.shape, generator=torch.Generator().manual_seed(2))
        rotated = decoder.rotary.at(positions).apply(keys + known)
        blocks, offsets = torch.tensor(SHORT)[positions // BLOCK], positions % BLOCK
        cache.write(blocks, offsets, positions, rotated, keys)
        lost.append(float((read_all(cache, SHORT, 40)[0] - rotated.transpose(0, 1)).norm() / keys.norm()))
    assert lost[1] < 1.05 * lost[0] + 1e-5


def test_what_is_taken_off_is_measured_once_and_finite() -> None:
    decoder = decoder_of("qwen2", bias=300.0)
    first, second = kv_conditioning.measure(decoder), kv_conditioning.measure(decoder)
    for one, other in zip(first, second, strict=True):
        assert one.key_bias is not None and float(one.key_bias.abs().max()) > 100
        for mine, again in ((one.key_scale, other.key_scale), (one.value_mean, other.value_mean)):
            assert torch.equal(mine, again) and mine.isfinite().all()
        half = one.key_scale.shape[1] // 2
        assert torch.equal(one.key_scale[:, :half], one.key_scale[:, half:])
    assert all(known.key_bias is None for known in kv_conditioning.measure(decoder_of("llama")))
