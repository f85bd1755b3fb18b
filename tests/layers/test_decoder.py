"""The shared forward against a deliberately naive one, and what the quantizer relies on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qlocal.layers import attention
from qlocal.layers.decoder import Decoder, DecoderLayer
from qlocal.layers.linear import Placement, vector
from qlocal.layers.loader import load_embedding, load_head, load_layer
from qlocal.layers.rotary import Rotary
from qlocal.models.base import Role
from qlocal.weights import DenseWeight
from tests.memory_checkpoint import MemoryCheckpoint, random_ids
from tests.naive_model import naive_logits

MODEL_TYPES = ("qwen2", "llama", "mixtral")
YARN = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}}
LLAMA3 = {
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "original_max_position_embeddings": 128,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
}


def decoder_of(checkpoint: MemoryCheckpoint, dtype: str = "float32", *, join: bool = True) -> Decoder:
    config = checkpoint.config
    layers = [load_layer(checkpoint, i, "cpu", dtype, join=join) for i in range(config.num_hidden_layers)]
    return Decoder(config, load_embedding(checkpoint, "cpu"), layers, *load_head(checkpoint, "cpu", dtype))


def logits_of(decoder: Decoder, *sequences: list[int]) -> Tensor:
    ids = torch.tensor([i for sequence in sequences for i in sequence])
    positions = torch.cat([torch.arange(len(sequence)) for sequence in sequences])
    attend = attention.causal([len(sequence) for sequence in sequences])
    return decoder.logits(decoder.forward(ids, positions, lambda _: attend))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("join", [True, False], ids=["joined", "apart"])
def test_forward_equals_the_naive_one(model_type: str, join: bool) -> None:
    checkpoint = MemoryCheckpoint(model_type)
    ids = random_ids(320, 21)
    expected = naive_logits(checkpoint.values, checkpoint.config, ids)
    torch.testing.assert_close(
        logits_of(decoder_of(checkpoint, join=join), ids).double(), expected, atol=2e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen2", YARN),
        ("llama", LLAMA3),
        ("llama", {"head_dim": 16}),
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"num_key_value_heads": 1}),
    ],
    ids=["tied", "yarn", "llama3", "head_dim", "no GQA", "one KV head"],
)
def test_forward_equals_the_naive_one_for_every_variant(model_type: str, overrides: dict[str, object]) -> None:
    checkpoint = MemoryCheckpoint(model_type, overrides)
    ids = random_ids(320, 21)
    expected = naive_logits(checkpoint.values, checkpoint.config, ids)
    torch.testing.assert_close(logits_of(decoder_of(checkpoint), ids).double(), expected, atol=2e-5, rtol=1e-5)


def test_sequences_side_by_side_do_not_see_each_other() -> None:
    decoder = decoder_of(MemoryCheckpoint("qwen2"))
    first, second = random_ids(320, 9, seed=1), random_ids(320, 14, seed=2)
    together = logits_of(decoder, first, second)
    torch.testing.assert_close(together[:9], logits_of(decoder, first), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[9:], logits_of(decoder, second), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_bfloat16_stays_near_float32(model_type: str) -> None:
    checkpoint = MemoryCheckpoint(model_type)
    ids = random_ids(320, 21)
    exact = logits_of(decoder_of(checkpoint), ids).log_softmax(-1)
    rounded = logits_of(decoder_of(checkpoint, "bfloat16"), ids).log_softmax(-1)
    assert (exact.exp() * (exact - rounded)).sum(-1).mean() < 1e-3


def observed(layer: DecoderLayer, tokens: int = 7) -> list[tuple[Role, int | None, Tensor]]:
    seen: list[tuple[Role, int | None, Tensor]] = []
    hidden = torch.randn(tokens, layer.config.hidden_size, generator=torch.Generator().manual_seed(3))
    rotation = Rotary(layer.config).at(torch.arange(tokens))

    def observe(role: Role, expert: int | None, x: Tensor, tokens: Tensor | None) -> bool:
        assert (tokens is None) == (expert is None) and (tokens is None or len(tokens) == len(x))
        seen.append((role, expert, x.clone()))
        return False

    after = layer.attention_block(hidden, rotation, attention.causal([tokens]), observe)
    layer.ffn_block(after, observe)
    return seen


def test_observer_sees_the_input_of_every_linear_once() -> None:
    checkpoint = MemoryCheckpoint("qwen2")
    seen = observed(load_layer(checkpoint, 0, "cpu", "float32"))
    assert [(role, expert) for role, expert, _ in seen] == [
        (Role.Q, None),
        (Role.O, None),
        (Role.GATE, None),
        (Role.DOWN, None),
    ]
    assert [tuple(x.shape) for _, _, x in seen] == [(7, 128), (7, 128), (7, 128), (7, 256)]


def test_observer_sees_the_tokens_that_were_routed_to_each_expert() -> None:
    seen = observed(load_layer(MemoryCheckpoint("mixtral"), 0, "cpu", "float32"))
    assert [role for role, _, _ in seen[:3]] == [Role.Q, Role.O, Role.ROUTER]
    gates = {expert: x for role, expert, x in seen if role is Role.GATE}
    downs = {expert: x for role, expert, x in seen if role is Role.DOWN}
    assert gates.keys() == downs.keys()
    assert sum(len(x) for x in gates.values()) == 7 * 2
    all_tokens = next(x for role, _, x in seen if role is Role.ROUTER)
    assert all((all_tokens[:, None] == x[None]).all(-1).any(0).all() for x in gates.values())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_replaced_weight_is_the_one_that_computes(model_type: str) -> None:
    checkpoint = MemoryCheckpoint(model_type)
    ids = random_ids(320, 12)
    decoder = decoder_of(checkpoint, join=False)
    for spec in checkpoint.architecture.layer_tensors(checkpoint.config, 1):
        if spec.is_bias:
            continue
        value = checkpoint.values[spec.name] * 0.5
        checkpoint.values[spec.name] = value
        bias = checkpoint.values.get(f"{spec.module}.bias")
        decoder.layers[1].replace(
            spec.role, spec.expert, DenseWeight(value), None if bias is None else DenseWeight(bias)
        )
    expected = naive_logits(checkpoint.values, checkpoint.config, ids)
    torch.testing.assert_close(logits_of(decoder, ids).double(), expected, atol=2e-5, rtol=1e-5)


def test_a_weight_of_another_shape_is_not_taken() -> None:
    layer = DecoderLayer(MemoryCheckpoint("qwen2").config, Placement(torch.device("cpu"), "float32"))
    with pytest.raises(AssertionError, match=r"\(3, 128\) where the table says \(128, 128\)"):
        layer.replace(Role.O, None, DenseWeight(torch.zeros(3, 128)))


def test_a_vector_is_read_in_the_order_of_its_row_map() -> None:
    weight = DenseWeight(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float16), torch.tensor([2, 0, 1]))
    assert vector(weight, torch.device("cpu")).tolist() == [3.0, 1.0, 2.0]
