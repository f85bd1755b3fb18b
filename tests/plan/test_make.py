"""The plan: what goes where, what fits, and what is said when it does not."""

from __future__ import annotations

import time

import pytest

from qlocal import plan as plan_module
from qlocal.errors import PlanError, UsageError
from qlocal.plan import make_plan
from tests.memory_checkpoint import MemoryCheckpoint

GIB = 1 << 30


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Free bytes by device name, for the test to set."""
    sizes = {"cpu": 4 * GIB}
    monkeypatch.setattr(plan_module, "free_bytes", sizes.__getitem__)
    return sizes


def weight_bytes(checkpoint: MemoryCheckpoint) -> int:
    """bf16 matrices, float32 vectors, and the tied head once more beside the embedding."""
    total = sum(
        s.num_bytes * (2 if len(s.shape) == 1 else 1) for s in checkpoint.tensors.values() if s.spec.layer is not None
    )
    table = checkpoint.tensors["model.embed_tokens.weight"].num_bytes
    return total + 2 * table


def test_plan_takes_the_whole_context_of_the_model_where_it_fits(free: dict[str, int]) -> None:
    checkpoint = MemoryCheckpoint("qwen2")
    plan = make_plan(checkpoint, ["cpu"])
    assert plan.max_context == 512
    assert plan.num_blocks == 8 * 2
    (part,) = plan.devices
    assert part.layers == (0, 1)
    assert part.weight_bytes == weight_bytes(checkpoint)
    assert part.cache_bytes == 16 * 2 * 2 * 256 * 64 * 2
    assert (plan.key_type, plan.value_type) == ("f16", "f16")


def test_float32_doubles_matrices_and_cache(free: dict[str, int]) -> None:
    checkpoint = MemoryCheckpoint("qwen2")
    half, full = (make_plan(checkpoint, ["cpu"], dtype=dtype).devices[0] for dtype in ("bfloat16", "float32"))
    assert full.cache_bytes == 2 * half.cache_bytes
    assert full.weight_bytes > 1.6 * half.weight_bytes


def test_a_head_of_16_bits_is_counted_as_it_is_held(free: dict[str, int]) -> None:
    checkpoint = MemoryCheckpoint("qwen2", {"hidden_size": 256, "tie_word_embeddings": True})
    plans = {head: make_plan(checkpoint, ["cpu"], head=head) for head in ("stored", "q8_0", "q6_k")}
    stored, q8_0, q6_k = (plan.devices[0].weight_bytes for plan in plans.values())
    assert stored - q8_0 == 320 * (2 * 256 - 8 * 34)
    assert stored - q6_k == 320 * (2 * 256 - 210)
    assert [plan.head for plan in plans.values()] == list(plans)


def test_a_head_whose_rows_are_no_whole_blocks_is_refused(free: dict[str, int]) -> None:
    with pytest.raises(PlanError, match="has 128 columns, q6_k needs a multiple of 256"):
        make_plan(MemoryCheckpoint("qwen2"), ["cpu"], head="q6_k")
    with pytest.raises(UsageError, match="there is no head 'q4_0'"):
        make_plan(MemoryCheckpoint("qwen2"), ["cpu"], head="q4_0")


def test_layers_are_dealt_in_contiguous_shares_by_free_memory(free: dict[str, int]) -> None:
    free["cuda:0"], free["cuda:1"] = 3 * GIB, 1 * GIB
    plan = make_plan(MemoryCheckpoint("llama", {"num_hidden_layers": 8}), ["cuda:0", "cuda:1"])
    assert [part.layers for part in plan.devices] == [(0, 1, 2, 3, 4, 5), (6, 7)]
    assert plan.embedding_device == "cpu"
    assert plan.head_device == "cuda:1"
    assert [plan.device_of_layer(i) for i in (0, 5, 6)] == ["cuda:0", "cuda:0", "cuda:1"]


def test_a_device_named_twice_holds_two_shares_of_one_memory(free: dict[str, int]) -> None:
    checkpoint = MemoryCheckpoint("llama", {"num_hidden_layers": 5})
    once, twice = (make_plan(checkpoint, ["cpu"] * n) for n in (1, 2))
    assert [part.layers for part in twice.devices] == [(0, 1), (2, 3, 4)]
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
