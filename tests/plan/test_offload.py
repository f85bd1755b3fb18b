"""What the cards cannot hold goes to the host: as little as will do, and only when it may."""

from __future__ import annotations

import pytest

from qlocal.config import CARD_RESERVE
from qlocal.errors import PlanError, UsageError
from qlocal.plan import Plan, make_plan, placement, places
from tests.memory_checkpoint import MemoryCheckpoint

MIB, GIB = 1 << 20, 1 << 30
RESERVE = CARD_RESERVE
SIZES = {
    "num_hidden_layers": 12,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
}


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Free bytes by device name, for the test to set: the model's layers take about 12 MiB each with their cache."""
    sizes = {"cpu": 4 * GIB, "cuda:0": RESERVE + 120 * MIB, "cuda:1": RESERVE + 120 * MIB, "cuda:2": RESERVE + 8 * GIB}
    monkeypatch.setattr(places, "free_bytes", sizes.__getitem__)
    monkeypatch.setattr(places, "taken_bytes", lambda device: 0)
    monkeypatch.setattr(placement, "step_bytes", lambda *_, **__: 60 * MIB)
    return sizes


@pytest.fixture
def dense() -> MemoryCheckpoint:
    return MemoryCheckpoint("llama", SIZES)


@pytest.fixture
def mixture() -> MemoryCheckpoint:
    return MemoryCheckpoint("mixtral", {**SIZES, "intermediate_size": 512})


def layers_by_device(plan: Plan) -> dict[str, tuple[int, ...]]:
    return {part.device: part.layers for part in plan.devices}


def assert_it_fits(plan: Plan, free: dict[str, int]) -> None:
    for part in plan.devices:
        assert part.total_bytes + part.reserve_bytes <= free[part.device]
    assert sorted(layer for part in plan.devices for layer in part.layers) == list(range(12))


def test_nothing_is_offloaded_where_the_cards_hold_the_model(free: dict[str, int], dense: MemoryCheckpoint) -> None:
    plan = make_plan(dense, ["cuda:2"])
    assert layers_by_device(plan) == {"cuda:2": tuple(range(12))}
    assert make_plan(dense, ["cpu", "cuda:2"]) == plan


def test_the_first_layers_go_to_the_host_and_as_few_as_will_do(free: dict[str, int], dense: MemoryCheckpoint) -> None:
    plan = make_plan(dense, ["cuda:0", "cuda:1"])
    assert_it_fits(plan, free)
    found = layers_by_device(plan)
    num_host = len(found["cpu"])
    assert found["cpu"] == tuple(range(num_host)) and 0 < num_host < 12
    assert plan.head_device == "cuda:1" and plan.host_experts == ()
    assert plan.device_of_layer(0) == plan.device_of_experts(0) == "cpu"
    free["cuda:0"] += 13 * MIB
    assert len(layers_by_device(make_plan(dense, ["cuda:0", "cuda:1"]))["cpu"]) == num_host - 1


def test_unequal_cards_and_gaps_between_them_are_filled_in_order(free: dict[str, int], dense: MemoryCheckpoint) -> None:
    found = layers_by_device(make_plan(dense, ["cuda:0", "cuda:2"]))
    assert list(found) == ["cuda:0", "cuda:2"]
    assert len(found["cuda:0"]) < len(found["cuda:2"])


def test_none_refuses_and_names_the_option(free: dict[str, int], dense: MemoryCheckpoint) -> None:
    with pytest.raises(PlanError, match=r"needs .* on cuda:0 .*120 MiB can be used.*--offload layers") as refused:
        make_plan(dense, ["cuda:0"], max_context=4096, offload="none")
    assert "other programs" not in str(refused.value)


def test_memory_of_other_programs_is_mentioned(
    free: dict[str, int], dense: MemoryCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "taken_bytes", lambda device: 20 * GIB)
    with pytest.raises(PlanError, match=r"632 MiB that are free, other programs hold 20.00 GiB"):
        make_plan(dense, ["cuda:0"], max_context=4096, offload="none")


def test_auto_keeps_a_model_on_the_cards_that_hold_it_with_a_useful_context(free: dict[str, int]) -> None:
    checkpoint = MemoryCheckpoint("llama", {**SIZES, "max_position_embeddings": 1 << 21})
    free["cpu"] = 64 * GIB
    with pytest.raises(PlanError, match=r"The largest context that fits is \d+ tokens; --kv q8 makes"):
        make_plan(checkpoint, ["cuda:2"], max_context=1 << 20)
    plan = make_plan(checkpoint, ["cuda:2"], max_context=1 << 20, offload="layers")
    assert plan.max_context == 1 << 20 and layers_by_device(plan)["cpu"]


def test_experts_go_to_the_host_and_their_attention_stays(free: dict[str, int], mixture: MemoryCheckpoint) -> None:
    free["cuda:0"] += 16 * MIB
    plan = make_plan(mixture, ["cuda:0"])
    assert_it_fits(plan, free)
    assert layers_by_device(plan) == {"cuda:0": tuple(range(12)), "cpu": ()}
    assert plan.host_experts == tuple(range(len(plan.host_experts)))
    assert plan.device_of_layer(0) == "cuda:0" and plan.device_of_experts(0) == "cpu"
    assert plan.device_of_experts(11) == "cuda:0"
    assert plan.max_context == 4096


def test_layers_of_a_mixture_are_offloaded_when_asked(free: dict[str, int], mixture: MemoryCheckpoint) -> None:
    plan = make_plan(mixture, ["cuda:0"], offload="layers")
    assert plan.host_experts == () and layers_by_device(plan)["cpu"]


def test_experts_are_not_asked_of_a_model_without(free: dict[str, int], dense: MemoryCheckpoint) -> None:
    with pytest.raises(UsageError, match="--offload experts: llama has no experts"):
        make_plan(dense, ["cuda:0"], offload="experts")


def test_a_host_without_memory_is_no_way_out(free: dict[str, int], dense: MemoryCheckpoint) -> None:
    free["cpu"] = 32 * MIB
    with pytest.raises(PlanError, match="needs"):
        make_plan(dense, ["cuda:0"], max_context=4096)
