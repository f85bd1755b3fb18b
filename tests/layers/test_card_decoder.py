"""The card's way through the layers, interpreted on the CPU, against the readable decoder."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from qlocal.kernels import dispatch
from qlocal.layers import loader
from qlocal.layers.decoder import Decoder
from qlocal.layers.native_decoder import native_decoder
from qlocal.layers.paged_attention import PagedAttention, TokenRun
from tests.kernels.triton.conftest import interpreted as interpreted  # a fixture
from tests.layers.test_native_decoder import BLOCK, KINDS, SIZES, distance, sides, storage_of
from tests.memory_checkpoint import MemoryCheckpoint, random_ids

LONG, SHORT, OTHER = [3, 1, 7, 4], [2, 11], [5]
SMALL = SIZES | {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 256}


@pytest.fixture
def card(interpreted: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The card's layers, with the CPU for a card."""
    monkeypatch.setattr(dispatch, "_is_card", lambda device: True)
    monkeypatch.setattr(dispatch, "_missing_for_triton", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    return SimpleNamespace(decoder=import_module("qlocal.layers.card_decoder"), load=decoder_of)


def decoder_of(model_type: str, kind: str, kernels: str, dtype: str = "float32") -> Decoder:
    """kernels: `auto` for the card's, `reference` for the truth."""
    checkpoint = MemoryCheckpoint(model_type, SMALL)
    make = KINDS[kind]
    for seed, spec in enumerate(checkpoint.architecture.tensors(checkpoint.config)):
        if spec.is_quantized and make is not None:
            checkpoint.weights[spec.name] = make(spec, checkpoint.values[spec.name], seed)
    layers = [
        loader.load_layer(checkpoint, i, "cpu", dtype, kernels, join=True)
        for i in range(checkpoint.config.num_hidden_layers)
    ]
    head = loader.load_head(checkpoint, "cpu", dtype, kernels)
    return Decoder(checkpoint.config, loader.load_embedding(checkpoint, "cpu"), layers, *head)


def plain_step(decoder: Decoder, storage: object, ids: Sequence[int], runs: Sequence[TokenRun]) -> Tensor:
    attention = PagedAttention(runs, storage, BLOCK)  # type: ignore[arg-type]
    return decoder.forward(torch.tensor(ids), attention.positions, attention.of_layer)


def card_step(card_decoder: object, ids: Sequence[int], runs: Sequence[TokenRun]) -> Tensor:
    positions = torch.cat([torch.arange(run.num_past, run.num_past + run.length) for run in runs])
    return card_decoder.forward(torch.tensor(ids), positions, runs).clone()  # type: ignore[attr-defined, no-any-return]


def compare(
    card: SimpleNamespace,
    decoders: tuple[Decoder, Decoder],
    steps: list[list[TokenRun]],
    types: tuple[str, str] = ("f16", "f16"),
    within: float = 2e-3,
) -> None:
    """decoders: the readable one, and the card's."""
    plain, fast = decoders
    plain_cache, fast_cache = storage_of(plain, *types), storage_of(fast, *types)
    native = native_decoder(fast, fast_cache, BLOCK)
    quick = card.decoder.card_decoder(fast, fast_cache, BLOCK, native)
    assert quick is not None
    for number, runs in enumerate(steps):
        ids = random_ids(320, sum(run.length for run in runs), seed=number)
        expected = plain_step(plain, plain_cache, ids, runs)
        assert distance(card_step(quick, ids, runs), expected) < within, f"step {number}"
        for mine, theirs in zip(sides(fast_cache), sides(plain_cache), strict=True):
            theirs.copy_(mine)  # a value between two codes may fall to either side


STEPS = [
    [TokenRun(18, 0, LONG)],
    [TokenRun(1, 0, SHORT), TokenRun(17, 18, LONG), TokenRun(2, 0, OTHER)],
    [TokenRun(1, 35, LONG), TokenRun(1, 1, SHORT)],
    [TokenRun(9, 36, LONG)],
]
"""A prompt, its rest between short runs, one token of each of two sequences, then nine of one."""


@pytest.mark.parametrize("model_type", ["qwen2", "llama", "mixtral"])
def test_steps_equal_the_readable_decoder(card: SimpleNamespace, model_type: str) -> None:
    compare(card, (card.load(model_type, "bf16", "reference"), card.load(model_type, "bf16", "auto")), STEPS)


def test_steps_over_a_packed_cache_do_too(card: SimpleNamespace) -> None:
    decoders = card.load("qwen2", "bf16", "reference"), card.load("qwen2", "bf16", "auto")
    compare(card, decoders, STEPS[:3], ("q8", "q4"), within=1e-2)


@pytest.mark.parametrize("kind", ["gptq with act-order", "k-quants"])
def test_quantized_layers_decode_as_the_readable_ones(card: SimpleNamespace, kind: str) -> None:
    """Weights with a column order of their own; and q and k of another type than v."""
    decoders = card.load("qwen2", kind, "reference"), card.load("qwen2", kind, "auto")
    compare(card, decoders, [[TokenRun(2, 0, LONG)], [TokenRun(1, 2, LONG)]])


def test_layers_on_the_cpu_come_first(card: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer by the CPU's native step, the second by the card's kernels, in bfloat16."""
    fast = card.load("llama", "bf16", "auto", "bfloat16")
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "_is_card", lambda device: False)
        fast.layers[0] = card.load("llama", "bf16", "auto", "bfloat16").layers[0]
    compare(card, (card.load("llama", "bf16", "reference"), fast), [[TokenRun(3, 0, LONG)]], within=2e-2)


def test_what_no_card_computes_has_no_card_decoder(card: SimpleNamespace) -> None:
    plain, exact = card.load("llama", "bf16", "reference"), card.load("llama", "bf16", "auto")
    assert card.decoder.card_decoder(plain, storage_of(plain), BLOCK) is None
    assert card.decoder.card_decoder(exact, storage_of(exact, "f32", "f32"), BLOCK) is None
