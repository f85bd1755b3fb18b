"""The native step computes what the readable decoder computes, and leaves the same cache behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qlocal.cache.storage import KVStorage
from qlocal.ggml_types import GgmlType
from qlocal.kernels import dispatch, native
from qlocal.kernels.quantize_blocks import Fit, quantize_blocks
from qlocal.layers import kv_conditioning
from qlocal.layers.decoder import Decoder
from qlocal.layers.loader import load_embedding, load_head, load_layer
from qlocal.layers.native_decoder import NativeDecoder, describe, native_decoder
from qlocal.layers.paged_attention import PagedAttention, TokenRun
from qlocal.models.base import Role, TensorSpec
from qlocal.weights import BlockWeight, Weight
from tests.kernels.weights import random_affine
from tests.memory_checkpoint import MemoryCheckpoint, random_ids

BLOCK, NUM_BLOCKS = 32, 32
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "vocab_size": 320}
MODEL_TYPES = ("qwen2", "llama", "mixtral")
LONG, SHORT = list(range(1, 23)), [23, 30, 25]
"""Block tables of two sequences; the first is long enough for several threads."""

MakeWeight = Callable[[TensorSpec, Tensor, int], Weight]


def _quantized(values: Tensor, ggml_type: GgmlType, row_map: Tensor | None = None) -> Weight:
    library = native.load()
    assert isinstance(library, native.Library), "the tests run with the native library"
    blocks, _ = quantize_blocks(library, values.float(), ggml_type, Fit.PLAIN)
    return BlockWeight(blocks, ggml_type, values.shape[1], row_map)


def _k_quants(spec: TensorSpec, values: Tensor, _: int) -> Weight:
    """As llama-quantize mixes them: q and k are one kernel call, v another."""
    return _quantized(values, GgmlType.Q6_K if spec.role in (Role.V, Role.DOWN) else GgmlType.Q4_K)


KINDS: dict[str, MakeWeight | None] = {
    "bf16": None,
    "q4_0, rows permuted": lambda _, values, __: _quantized(values, GgmlType.Q4_0, torch.randperm(len(values))),
    "q8_0": lambda _, values, __: _quantized(values, GgmlType.Q8_0),
    "k-quants": _k_quants,
    "awq": lambda spec, _, seed: random_affine(*spec.shape, 64, seed),
    "gptq with act-order": lambda spec, _, seed: random_affine(*spec.shape, 64, seed, act_order=True),
}


def decoder_of(model_type: str, kind: str, dtype: str, intermediate_size: int = 512) -> Decoder:
    checkpoint = MemoryCheckpoint(model_type, SIZES | {"intermediate_size": intermediate_size})
    make = KINDS[kind]
    for seed, spec in enumerate(checkpoint.architecture.tensors(checkpoint.config)):
        if spec.is_quantized and make is not None:
            checkpoint.weights[spec.name] = make(spec, checkpoint.values[spec.name], seed)
    layers = [load_layer(checkpoint, i, "cpu", dtype, join=True) for i in range(checkpoint.config.num_hidden_layers)]
    return Decoder(checkpoint.config, load_embedding(checkpoint, "cpu"), layers, *load_head(checkpoint, "cpu", dtype))


def storage_of(decoder: Decoder, key_type: str = "f16", value_type: str = "f16") -> KVStorage:
    config = decoder.config
    layers = ["cpu"] * config.num_hidden_layers
    sizes = (NUM_BLOCKS, BLOCK, config.num_key_value_heads, config.head_dim)
    known = kv_conditioning.measure(decoder) if {"q8", "q4"} & {key_type, value_type} else None
    types = [(key_type, value_type), (key_type, "q8" if value_type == "q4" else value_type)]  # in turns
    return KVStorage(layers, *sizes, [types[i % 2] for i in range(len(layers))], known)


def sides(storage: KVStorage) -> list[Tensor]:
    """Return the memory of keys and of values of every layer."""
    return [side.memory for layer in storage.layers for side in (layer.keys, layer.values)]


def assert_same_cache(found: KVStorage, expected: KVStorage, within: float) -> None:
    """Compare all float16 keys and values."""
    for mine, theirs in zip(sides(found), sides(expected), strict=True):
        assert mine.any()
        assert distance(mine.view(torch.float16).float(), theirs.view(torch.float16).float()) < within


def plain_forward(decoder: Decoder, storage: KVStorage, ids: list[int], runs: list[TokenRun]) -> Tensor:
    attention = PagedAttention(runs, storage, BLOCK)
    return decoder.forward(torch.tensor(ids), attention.positions, attention.of_layer)


def native_forward(step: NativeDecoder, storage: KVStorage, ids: list[int], runs: list[TokenRun]) -> Tensor:
    return step.forward(torch.tensor(ids), PagedAttention(runs, storage, BLOCK).positions, runs)


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the relative distance of two tensors, as one number."""
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(params=list(native.Isa), ids=lambda isa: isa.name.lower())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> native.Isa:
    """Every instruction set that this CPU runs, for products and step alike."""
    library = native.load()
    assert isinstance(library, native.Library), "the tests run with the native library"
    if request.param.needs not in library.features:
        pytest.skip(f"this CPU has no {request.param.name}")
    chosen = replace(library, isa=request.param)
    monkeypatch.setattr(native, "load", lambda: chosen)
    return chosen.isa


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_equals_the_plain_forward(isa: native.Isa, model_type: str, kind: str, threads: int) -> None:
    decoder = decoder_of(model_type, kind, "float32")
    plain, fast = storage_of(decoder), storage_of(decoder)
    step = describe(decoder, fast, BLOCK)
    assert step is not None
    prompt = [TokenRun(len(LONG) * BLOCK - 40, 0, LONG), TokenRun(45, 0, SHORT)]
    plain_forward(decoder, plain, random_ids(320, sum(run.length for run in prompt)), prompt)
    for mine, theirs in zip(sides(fast), sides(plain), strict=True):
        mine.copy_(theirs)
    long, short = (run.length for run in prompt)
    before = torch.get_num_threads()
    dispatch.set_threads(threads)
    try:
        for runs in ([TokenRun(1, long, LONG)], [TokenRun(5, long + 1, LONG), TokenRun(3, short, SHORT)]):
            ids = random_ids(320, sum(run.length for run in runs), seed=len(runs))
            expected = plain_forward(decoder, plain, ids, runs)
            # Keys and values are rounded to float16: one that falls to the other side is off by one part in 2048.
            assert distance(native_forward(step, fast, ids, runs), expected) < 5e-4
    finally:
        dispatch.set_threads(before)
    assert_same_cache(fast, plain, 5e-4)


def test_the_first_token_of_a_sequence_sees_itself_alone(isa: native.Isa) -> None:
    decoder = decoder_of("qwen2", "bf16", "float32")
    plain, fast = storage_of(decoder), storage_of(decoder)
    for memory in sides(fast):
        memory.view(torch.float16).fill_(float("nan"))  # what was not written must not be read
    step = describe(decoder, fast, BLOCK)
    assert step is not None
    runs = [TokenRun(1, 0, [4]), TokenRun(2, 0, [9])]
    expected = plain_forward(decoder, plain, [1, 2, 3], runs)
    torch.testing.assert_close(native_forward(step, fast, [1, 2, 3], runs), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(
    ("kind", "intermediate_size"),
    [("k-quants", 512), ("gptq with act-order", 512), ("awq", 576), ("q8_0", 544), ("bf16", 512)],
)
def test_prompts_go_the_same_way(isa: native.Isa, model_type: str, kind: str, intermediate_size: int) -> None:
    """544 is no multiple of 64, so silu(gate) * up does not stay packed; act-order keeps it from that, too."""
    if kind == "bf16" and isa is not native.Isa.AMX:
        pytest.skip("torch reads prompts of unquantized models where there is no AMX")
    exact, fast = (decoder_of(model_type, kind, dtype, intermediate_size) for dtype in ("float32", "bfloat16"))
    exact_cache, plain_cache, fast_cache = storage_of(exact), storage_of(fast), storage_of(fast)
    step = native_decoder(fast, fast_cache, BLOCK)
    assert step is not None
    for runs in (
        [TokenRun(70, 0, LONG), TokenRun(9, 0, SHORT)],
        [TokenRun(300, 70, LONG)],
        [TokenRun(1, 9, SHORT), TokenRun(40, 370, LONG)],
    ):
        ids = random_ids(320, sum(run.length for run in runs), seed=runs[0].num_past)
        assert step.takes(len(ids))
        expected = plain_forward(exact, exact_cache, ids, runs)
        lost_by_plain = distance(plain_forward(fast, plain_cache, ids, runs), expected)
        lost = distance(native_forward(step, fast_cache, ids, runs), expected)
        assert lost < 1.1 * lost_by_plain + 1e-3 < 0.1  # bfloat16 may send a token to another expert


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_layers_that_the_library_does_not_read_follow_those_that_it_does(isa: native.Isa, model_type: str) -> None:
    """As layers on cards do: the first ones, which the cards could not hold, are one call all the same."""
    checkpoint = MemoryCheckpoint(model_type, SIZES | {"num_hidden_layers": 4})
    plain = [load_layer(checkpoint, i, "cpu", "bfloat16", "reference", join=True) for i in range(4)]
    own = [load_layer(checkpoint, i, "cpu", "bfloat16", join=True) for i in range(2)]
    parts = (load_embedding(checkpoint, "cpu"), [*own, *plain[2:]], *load_head(checkpoint, "cpu", "bfloat16"))
    mixed, whole = Decoder(checkpoint.config, *parts), Decoder(checkpoint.config, parts[0], plain, *parts[2:])
    plain_cache, fast_cache = storage_of(whole), storage_of(mixed)
    step = native_decoder(mixed, fast_cache, BLOCK)
    assert step is not None and native_decoder(whole, plain_cache, BLOCK) is None
    for runs in ([TokenRun(4, 0, SHORT)], [TokenRun(1, 4, SHORT), TokenRun(3, 0, LONG)]):
        ids = random_ids(320, sum(run.length for run in runs))
        expected = plain_forward(whole, plain_cache, ids, runs)
        assert distance(native_forward(step, fast_cache, ids, runs), expected) < 2e-2
    assert_same_cache(fast_cache, plain_cache, 2e-2)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_unquantized_models_decode_natively_and_read_prompts_by_amx_or_torch(isa: native.Isa, model_type: str) -> None:
    exact, fast = decoder_of(model_type, "bf16", "float32"), decoder_of(model_type, "bf16", "bfloat16")
    plain_cache, fast_cache = storage_of(exact), storage_of(fast)
    step = native_decoder(fast, fast_cache, BLOCK)
    assert step is not None
    assert step.takes(4) and step.takes(9) == (isa is native.Isa.AMX)
    runs = [TokenRun(4, 0, [4])]
    expected = plain_forward(exact, plain_cache, [1, 2, 3, 4], runs)
    assert distance(native_forward(step, fast_cache, [1, 2, 3, 4], runs), expected) < 2e-3


@pytest.mark.parametrize(
    ("dtype", "cache_dtype", "sizes"),
    [("float32", "f16", {}), ("bfloat16", "f32", {}), ("bfloat16", "f16", {"intermediate_size": 272})],
    ids=["float32 products", "float32 cache", "odd width"],
)
def test_what_has_no_native_step_keeps_the_plain_one(dtype: str, cache_dtype: str, sizes: dict[str, int]) -> None:
    checkpoint = MemoryCheckpoint("llama", SIZES | sizes)
    layers = [load_layer(checkpoint, i, "cpu", dtype, join=True) for i in range(2)]
    decoder = Decoder(
        checkpoint.config, load_embedding(checkpoint, "cpu"), layers, *load_head(checkpoint, "cpu", dtype)
    )
    assert native_decoder(decoder, storage_of(decoder, cache_dtype, cache_dtype), BLOCK) is None


@pytest.mark.parametrize("kind", ["bf16", "k-quants", "awq"])
@pytest.mark.parametrize("types", [("f16", "f16"), ("q8", "q4")])
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_up_to_eight_tokens_together_are_bit_by_bit_what_they_are_one_by_one(
    isa: native.Isa, model_type: str, types: tuple[str, str], kind: str
) -> None:
    """Also where a context is cut into parts (512 tokens), and beside another sequence: guesses change no answer."""
    decoder = decoder_of(model_type, kind, "bfloat16")
    storage = storage_of(decoder, *types)
    step = native_decoder(decoder, storage, BLOCK)
    assert step is not None
    past, ids = 509, random_ids(320, 520)
    native_forward(step, storage, ids[:past], [TokenRun(past, 0, LONG)])
    alone = [native_forward(step, storage, [ids[past + i]], [TokenRun(1, past + i, LONG)])[0] for i in range(8)]
    for count in range(2, 9):
        together = native_forward(step, storage, ids[past : past + count], [TokenRun(count, past, LONG)])
        assert torch.equal(together, torch.stack(alone[:count]))
    beside = native_forward(step, storage, [*ids[past : past + 5], 7], [TokenRun(5, past, LONG), TokenRun(1, 0, SHORT)])
    assert torch.equal(beside[:5], torch.stack(alone[:5]))
