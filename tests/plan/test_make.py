"""The plan: what goes where, what fits, and what is said when it does not."""

from __future__ import annotations

import time

import pytest

from qlocal.errors import PlanError, UsageError
from qlocal.plan import make_plan, places
from qlocal.plan.places import MEMORY_SHARE
from tests.memory_checkpoint import MemoryCheckpoint

GIB = 1 << 30


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Free bytes by device name, for the test to set."""
    sizes = {"cpu": 4 * GIB}
    monkeypatch.setattr(places, "free_bytes", sizes.__getitem__)
    monkeypatch.setattr(places, "taken_bytes", lambda device: 0)
    return sizes


def norms_and_biases(checkpoint: MemoryCheckpoint) -> int:
    """Bytes of the vectors, which are held in float32."""
    return sum(2 * s.num_bytes for s in checkpoint.tensors.values() if len(s.shape) == 1)


def matrices(checkpoint: MemoryCheckpoint, *names: str) -> int:
    return sum(s.num_bytes for n, s in checkpoint.tensors.items() if len(s.shape) == 2 and any(w in n for w in names))


def test_plan_takes_the_whole_context_of_the_model_where_it_fits(free: dict[str, int]) -> None:
    checkpoint = MemoryCheckpoint("qwen2")
    plan = make_plan(checkpoint, ["cpu"])
    assert plan.max_context == 512
    assert plan.num_blocks == 8 * 2
    (part,) = plan.devices
    assert part.layers == (0, 1)
    assert part.cache_bytes == 16 * 2 * 2 * 256 * 64 * 2
    assert (plan.key_type, plan.value_type) == ("f16", "f16")


def test_dense_weights_are_copied_where_they_are_joined_and_mapped_where_not(free: dict[str, int]) -> None:
    checkpoint = MemoryCheckpoint("qwen2")
    (part,) = make_plan(checkpoint, ["cpu"]).devices
    joined = matrices(checkpoint, "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    assert part.weight_bytes == joined + norms_and_biases(checkpoint)
    assert part.mapped_bytes == matrices(checkpoint, "o_proj", "down_proj", "lm_head")


def test_float32_doubles_the_cache_and_leaves_stored_weights_as_they_are(free: dict[str, int]) -> None:
    checkpoint = MemoryCheckpoint("qwen2")
    half, full = (make_plan(checkpoint, ["cpu"], dtype=dtype).devices[0] for dtype in ("bfloat16", "float32"))
    assert full.cache_bytes == 2 * half.cache_bytes
    assert full.weight_bytes == half.weight_bytes


def test_packed_types_take_8_and_4_bits_and_their_scales_and_the_first_values_8(free: dict[str, int]) -> None:
    checkpoint = MemoryCheckpoint("qwen2", {"hidden_size": 256, "num_hidden_layers": 8})
    plans = {kv: make_plan(checkpoint, ["cpu"], kv=kv) for kv in ("f16", "q8", "q8,q4", "q4")}
    bits = {kv: 16 * plan.devices[0].cache_bytes / plans["f16"].devices[0].cache_bytes for kv, plan in plans.items()}
    assert bits == {"f16": 16, "q8": 8.5, "q8,q4": 6.5 + 0.5, "q4": 4.5 + 0.5}
    assert (plans["q8,q4"].key_type, plans["q8,q4"].value_type) == ("q8", "q4")


def test_auto_takes_the_types_of_least_loss_that_fit_the_context(free: dict[str, int]) -> None:
    checkpoint = MemoryCheckpoint(
        "qwen2", {"hidden_size": 256, "max_position_embeddings": 65536, "num_hidden_layers": 48}
    )
    context, chosen = 65536, []
    for kv in ("f16", "q8", "q8,q4", "q4"):
        plan = make_plan(checkpoint, ["cpu"], context, slots=1, kv=kv)
        free["cpu"] = int((plan.devices[0].total_bytes + (1 << 20)) / MEMORY_SHARE)
        found = make_plan(checkpoint, ["cpu"], context, slots=1, kv="auto")
        chosen.append((found.key_type, found.value_type))
        free["cpu"] = 8 * GIB
    assert chosen == [("f16", "f16"), ("q8", "q8"), ("q8", "q4"), ("q4", "q4")]


def test_a_head_of_16_bits_is_counted_as_it_is_held(free: dict[str, int]) -> None:
    checkpoint = MemoryCheckpoint("qwen2", {"hidden_size": 256, "tie_word_embeddings": True})
    plans = {head: make_plan(checkpoint, ["cpu"], head=head) for head in ("stored", "q8_0", "q6_k")}
    stored, q8_0, q6_k = (plan.devices[0] for plan in plans.values())
    assert stored.mapped_bytes - q8_0.mapped_bytes == 320 * 2 * 256
    assert q8_0.weight_bytes - stored.weight_bytes == 320 // 16 * 4 * (64 + 2 * 512)
    assert q6_k.weight_bytes - stored.weight_bytes == 320 // 16 * (320 + 8 * 384)
    assert [plan.head for plan in plans.values()] == list(plans)


def test_a_head_whose_rows_are_no_whole_blocks_is_refused(free: dict[str, int]) -> None:
    with pytest.raises(PlanError, match="has 128 columns, q6_k needs a multiple of 256"):
        make_plan(MemoryCheckpoint("qwen2"), ["cpu"], head="q6_k")
    with pytest.raises(UsageError, match="there is no head 'q4_0'"):
        make_plan(MemoryCheckpoint("qwen2"), ["cpu"], head="q4_0")


def test_layers_are_dealt_in_contiguous_shares_by_free_memory(free: dict[str, int]) -> None:
    free["cuda:0"], free["cuda:1"] = 13 * GIB // 2, 5 * GIB // 2  # half a GiB of each is CUDA's
    plan = make_plan(MemoryCheckpoint("llama", {"num_hidden_layers": 8}), ["cuda:0", "cuda:1"])
    assert [part.layers for part in plan.devices] == [(0, 1, 2, 3, 4, 5), (6, 7)]
    assert plan.embedding_device == "cpu"
    assert plan.head_device == "cuda:1"
    assert [plan.device_of_layer(i) for i in (0, 5, 6)] == ["cuda:0", "cuda:0", "cuda:1"]


def test_a_device_named_twice_holds_two_shares_of_one_memory(free: dict[str, int]) -> None:
    checkpoint = MemoryCheckpoint("llama", {"num_hidden_layers": 5})
    once, twice = (make_plan(checkpoint, ["cpu"] * n) for n in (1, 2))
    assert [part.layers for part in twice.devices] == [(0, 1, 2), (3, 4)]  # and the head
    assert sum(p.weight_bytes for p in twice.devices) == once.devices[0].weight_bytes
    assert sum(p.cache_bytes for p in twice.devices) == once.devices[0].cache_bytes


def test_context_shrinks_to_what_fits(free: dict[str, int]) -> None:
    checkpoint = MemoryCheckpoint("qwen2", {"max_position_embeddings": 1 << 20})
    free["cpu"] = 64 << 20
    plan = make_plan(checkpoint, ["cpu"])
    assert 256 <= plan.max_context < 1 << 20
    assert plan.devices[0].total_bytes <= free["cpu"]
    with pytest.raises(PlanError, match=f"largest context that fits is {plan.max_context} tokens"):
        make_plan(checkpoint, ["cpu"], max_context=plan.max_context + 1)


def test_a_model_that_does_not_fit_is_refused_with_the_numbers(free: dict[str, int]) -> None:
    free["cpu"] = 1 << 20
    with pytest.raises(PlanError, match=r"needs \d+ MiB on cpu .* weights, .* cache, .* scratch.*, 1 MiB can be used"):
        make_plan(MemoryCheckpoint("qwen2"), ["cpu"])


def test_a_memory_limit_counts_like_a_smaller_device(free: dict[str, int]) -> None:
    with pytest.raises(PlanError, match="can be used"):
        make_plan(MemoryCheckpoint("qwen2"), ["cpu"], max_memory=1 << 20)


def test_a_context_beyond_the_model_is_refused(free: dict[str, int]) -> None:
    with pytest.raises(PlanError, match="513 tokens is asked for, the model was made for 512"):
        make_plan(MemoryCheckpoint("qwen2"), ["cpu"], max_context=513)


def test_yarn_reaches_beyond_the_position_embeddings(free: dict[str, int]) -> None:
    yarn = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}}
    assert make_plan(MemoryCheckpoint("qwen2", yarn), ["cpu"]).max_context == 2048


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(UsageError, match="device 'tpu' is unknown"):
        make_plan(MemoryCheckpoint("qwen2"), ["tpu"])


def test_a_large_model_is_planned_in_less_than_a_second(free: dict[str, int]) -> None:
    checkpoint = MemoryCheckpoint("mixtral", {"num_hidden_layers": 56, "num_local_experts": 8, "hidden_size": 32})
    start = time.process_time()
    make_plan(checkpoint, ["cpu"])
    assert time.process_time() - start < 1.0
