"""What a rank of a tensor split holds: whole heads and whole groups, in proportion to the memory there is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlocal import catalog
from qlocal.errors import PlanError
from qlocal.formats.described import Description, describe
from qlocal.models.base import ModelConfig
from qlocal.plan import Plan, Request, cut, make_plan, plan_for
from qlocal.plan.places import kind_of, place
from tests.memory_checkpoint import MemoryCheckpoint

GIB = 1 << 30


@pytest.fixture
def config() -> ModelConfig:
    return catalog.entry("qwen2.5-72b-instruct").config()


def test_the_unpadded_ffn_of_the_72b_is_cut_between_groups(config: ModelConfig) -> None:
    first, second = cut.parts(config, [1, 1], 128)
    assert (first.intermediate_size, second.intermediate_size) == (14_848, 14_720)
    assert (first.num_key_value_heads, second.num_attention_heads) == (4, 32)
    assert first.vocab_rows + second.vocab_rows == config.vocab_size


def test_the_padded_one_is_cut_in_halves(config: ModelConfig) -> None:
    first, second = cut.parts(replace(config, intermediate_size=29_696), [1, 1], 256)
    assert first == second


def test_larger_cards_hold_more(config: ModelConfig) -> None:
    parts = cut.parts(config, [3, 1], 128)
    assert [part.num_key_value_heads for part in parts] == [6, 2]
    assert sum(part.intermediate_size for part in parts) == config.intermediate_size
    assert parts[0].intermediate_size == pytest.approx(3 * parts[1].intermediate_size, rel=0.02)


def test_a_rank_without_heads_is_refused(config: ModelConfig) -> None:
    with pytest.raises(PlanError, match=r"8 query heads of a KV head cannot be divided among 9 ranks"):
        cut.parts(config, [1] * 65, 128)


def test_ranks_beyond_the_kv_heads_hold_the_same_ones(config: ModelConfig) -> None:
    parts = cut.parts(config, [1] * 16, 128)
    assert {part.num_key_value_heads for part in parts} == {1}
    assert {part.num_attention_heads for part in parts} == {4}


def test_ranks_together_hold_what_one_device_holds() -> None:
    entry = catalog.entry("qwen2.5-7b-instruct")
    checkpoint = describe(entry.name, entry.architecture, entry.config(), Description("awq"))
    cards = tuple(place(f"cuda:{i}", 24 * GIB) for i in range(2))
    request = Request(checkpoint, cards, 32768, max_context=4096)
    whole, parts = (plan_for(replace(request, split=split)) for split in ("layer", "tensor"))
    norms = 4 * (57 * 3584)  # every rank has its own
    assert sum(p.weight_bytes for p in parts.devices) == sum(p.weight_bytes for p in whole.devices) + norms
    assert parts.rank_weights == tuple(card.room for card in cards) and whole.rank_weights == ()
    assert all(part.layers == tuple(range(28)) for part in parts.devices)


def test_a_plan_is_taken_over_as_it_was_made() -> None:
    entry = catalog.entry("qwen2.5-7b-instruct")
    checkpoint = describe(entry.name, entry.architecture, entry.config(), Description("q4_k_m"))
    cards = tuple(place(f"node1/cuda:{i}", 24 * GIB) for i in range(2))
    plan = plan_for(Request(checkpoint, cards, 32768, split="tensor"))
    assert Plan.from_json(plan.to_json()) == plan
    assert kind_of(plan.devices[1].device) == "cuda" and plan.devices[1].reserve_bytes == 512 << 20


@pytest.mark.parametrize(
    ("devices", "split"),
    [
        (["node1/cuda:0", "node1/cuda:1"], "tensor"),
        (["node1/cuda:0"], "layer"),
        (["cpu", "cpu"], "layer"),  # one memory and the same cores, which a native step uses better
        ([f"node1/cuda:{i}" for i in range(9)], "layer"),  # more than the four heads and the eight groups
    ],
)
def test_auto_takes_a_tensor_split_for_cards_that_it_can_be_cut_among(devices: list[str], split: str) -> None:
    free = {device: GIB for device in devices if device != "cpu"}
    checkpoint = MemoryCheckpoint("llama", {"num_hidden_layers": 9})
    assert make_plan(checkpoint, devices, split="auto", free=free).split == split
