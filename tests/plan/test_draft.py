"""A draft model in the plan: its bytes, its place, and the context that is left beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qlocal.config import FROM_CONTEXT, NO_DRAFT
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.plan import Plan, levers, make_plan, places
from qlocal.plan.make import plan_for
from qlocal.plan.placement import Placer
from qlocal.plan.places import place
from qlocal.plan.request import Request
from qlocal.plan.words import notes
from tests import tiny
from tests.memory_checkpoint import MemoryCheckpoint

GIB = 1 << 30


@pytest.fixture(autouse=True)
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "free_bytes", lambda device: 4 * GIB)
    monkeypatch.setattr(places, "taken_bytes", lambda device: 0)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("small") / "small", overrides={"num_hidden_layers": 1})


def test_a_draft_model_adds_what_it_takes_alone_and_has_the_same_blocks(small: Path) -> None:
    checkpoint = MemoryCheckpoint("qwen2")
    without, plan = make_plan(checkpoint, ["cpu"]), make_plan(checkpoint, ["cpu"], guesses=str(small))
    alone = make_plan(open_checkpoint(small), ["cpu"]).devices[0]
    assert plan.draft is not None and plan.num_blocks == without.num_blocks
    assert (plan.draft.weight_bytes, plan.draft.mapped_bytes) == (alone.weight_bytes, alone.mapped_bytes)
    assert (plan.draft.cache_bytes, plan.draft.scratch_bytes) == (alone.cache_bytes, alone.scratch_bytes)
    assert plan.devices[0].total_bytes == without.devices[0].total_bytes + alone.total_bytes
    assert any("the draft model small is on cpu" in line for line in notes(plan))


def test_the_plan_of_the_draft_is_one_that_loads_it_whole(small: Path) -> None:
    plan = make_plan(MemoryCheckpoint("qwen2"), ["cpu"], kv="q8,q4", head="q8_0", guesses=str(small))
    own = plan.for_draft()
    assert [part.layers for part in own.devices] == [(0,)]
    assert (own.num_blocks, own.key_type, own.value_type) == (plan.num_blocks, "q8", "q4")
    assert own.head == "stored" and own.draft is None


def test_a_plan_with_a_draft_survives_the_way_to_other_ranks(small: Path) -> None:
    for guesses in (str(small), FROM_CONTEXT, NO_DRAFT):
        plan = make_plan(MemoryCheckpoint("qwen2"), ["cpu"], guesses=guesses)
        assert Plan.from_json(plan.to_json()) == plan
        assert plan.guesses == guesses and (plan.draft is not None) == (guesses == str(small))


@pytest.mark.parametrize("split", ["layer", "tensor"])
def test_on_cards_the_draft_stands_where_the_tokens_are_chosen_and_costs_context(small: Path, split: str) -> None:
    config = {"num_key_value_heads": 2, "max_position_embeddings": 131072, "num_hidden_layers": 4}
    cards = tuple(place(f"cuda:{i}", 24 << 20, 4 << 20) for i in range(2))
    request = Request(MemoryCheckpoint("qwen2", config), cards, 131072, split=split, slots=1)
    with_draft = replace(request, guesses=str(small), draft=open_checkpoint(small))
    plan = plan_for(with_draft)
    assert plan.draft is not None and plan.draft.device == ("cuda:1" if split == "layer" else "cuda:0")
    assert all(part.total_bytes <= part.free_bytes - part.reserve_bytes for part in plan.devices)
    assert 0 < Placer(with_draft).largest_context() < Placer(request).largest_context()
    lever = next(lever for lever in levers.levers(with_draft) if lever.option == "--draft context")
    assert lever.context == Placer(request).largest_context()
