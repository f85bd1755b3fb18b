"""The largest contexts, for the models of the catalogue and for geometries that nobody has made."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qlocal import catalog
from qlocal.formats.described import Description, describe
from qlocal.plan import Request, cut, demand, levers, placement
from qlocal.plan.levers import best_context
from qlocal.plan.places import UNLIMITED_BYTES, Place, place

GIB = 1 << 30
TABLE = Path(__file__).resolve().parents[3] / "shared" / "tools" / "memory_table.py"
CARD_BITS = {"g128": 4 + 24 / 128}
"""Of a card's layout: a zero point has a byte of its own in groups of 128."""


@pytest.fixture(scope="module")
def memory_table() -> Iterator[ModuleType]:
    """The arithmetic that lies beside a development checkout, with the bits of our layout."""
    if not TABLE.is_file():
        pytest.skip("needs ../shared/tools/memory_table.py, which is not part of the repository")
    spec = importlib.util.spec_from_file_location("memory_table", TABLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["memory_table"] = module
    spec.loader.exec_module(module)
    module.BITS.update(CARD_BITS)
    yield module
    del sys.modules["memory_table"]


def request_for(
    name: str, kind: str, gpus: int = 2, *, head: str = "stored", pad: bool = True, **changes: Any
) -> Request:
    entry = catalog.entry(name)
    checkpoint = describe(entry.name, entry.architecture, entry.config(), Description(kind, pads_ffn=pad))
    cards = tuple(place(f"cuda:{i}", int(23.6 * GIB)) for i in range(gpus))
    host = Place("cpu", UNLIMITED_BYTES, 0)
    return replace(Request(checkpoint, cards, 1 << 20, host=host, head=head, offload="none"), **changes)


CASES = [
    # name here, there, type, head, layout there, cards
    ("qwen2.5-72b-instruct", "Qwen2.5-72B", "awq", "stored", "A", 2),
    ("qwen2.5-72b-instruct", "Qwen2.5-72B", "awq", "q8_0", "B", 2),
    ("qwen2.5-72b-instruct", "Qwen2.5-72B", "awq", "q6_k", "D", 2),
    ("qwen2.5-72b-instruct", "Qwen2.5-72B", "q4_k_m", "stored", "I", 2),
    ("qwen2.5-72b-instruct", "Qwen2.5-72B", "q4_k_m", "stored", "H", 2),
    ("llama-3.1-70b-instruct", "Llama-3.1-70B", "awq", "q8_0", "B", 2),
    ("llama-3.1-70b-instruct", "Llama-3.1-70B", "q4_k_m", "stored", "H", 2),
    ("qwen2.5-32b-instruct", "Qwen2.5-32B", "awq", "q8_0", "B", 1),
    ("qwen2.5-32b-instruct", "Qwen2.5-32B", "q4_k_m", "stored", "H", 1),
    ("mixtral-8x7b-instruct-v0.1", "Mixtral-8x7B", "awq", "q8_0", "B", 2),
]


@pytest.mark.parametrize("kv", ["f16", "q8", "q4"])
@pytest.mark.parametrize("split", ["layer", "tensor"])
@pytest.mark.parametrize(("name", "there", "kind", "head", "letter", "gpus"), CASES)
def test_contexts_are_those_of_the_table_under_its_assumptions(
    name: str,
    there: str,
    kind: str,
    head: str,
    letter: str,
    gpus: int,
    split: str,
    kv: str,
    memory_table: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if gpus == 1 and split == "tensor":
        pytest.skip("one card is not split")
    model = next(m for m in memory_table.MODELS if m.name == there)
    layout = next(found for found in memory_table.LAYOUTS if found.key == letter)
    # Here the embedding is always on the host; there it is for some layouts.
    layout = memory_table.Layout(letter, "", layout.linears, layout.embed, layout.head, True, layout.pad)
    opts = type("Options", (), {"runtime": 0.5, "chunk": 512, "scratch": "dequant"})
    scratch = int(memory_table.scratch_bytes(model, opts, 2 if split == "tensor" else 1))
    monkeypatch.setattr(placement, "step_bytes", lambda *_, **__: scratch)
    monkeypatch.setattr(demand, "FINE_VALUES", 0)  # the table holds all layers alike
    request = request_for(name, kind, gpus, head=head, pad=letter != "H", split=split, key_type=kv, value_type=kv)
    expected = memory_table.largest_context(model, layout, kv, gpus, 23.6, split, opts)
    # Where weights leave next to nothing, as in H, layers of unlike size decide; the table takes them for alike.
    near_bytes = 47.2 * GIB / 500 if letter == "H" else 0
    near = max(request.block_size, near_bytes / memory_table.kv_bytes_per_token(model, kv))
    assert best_context(request) == pytest.approx(expected, rel=0.02, abs=near)


def test_values_of_the_first_layers_in_8_bits_cost_a_hundredth_of_the_cache_in_4(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cache_bytes() -> int:
        needs = request_for("qwen2.5-72b-instruct", "awq", 2, key_type="q4", value_type="q4").demand
        return needs.cache_bytes(1024, "cuda:0", cut.whole(needs.config), range(80))

    fine = cache_bytes()
    monkeypatch.setattr(demand, "FINE_VALUES", 0)
    assert fine == cache_bytes() * (80 * 9 + 2 * 4) // (80 * 9)


def test_padding_the_ffn_makes_q4_k_m_smaller_and_awq_larger() -> None:
    sizes = {
        (kind, pad): sum(
            share.weights.total
            for share in placement.Placer(request_for("qwen2.5-72b-instruct", kind, 3, pad=pad)).evenly(256).shares
        )
        for kind in ("awq", "q4_k_m")
        for pad in (False, True)
    }
    assert sizes["q4_k_m", False] - sizes["q4_k_m", True] == pytest.approx(3.17 * GIB, rel=0.02)
    assert sizes["awq", True] - sizes["awq", False] == pytest.approx(126 << 20, rel=0.02)


def test_fewer_bits_of_the_cache_hold_more_tokens() -> None:
    for contexts in levers.largest_contexts(request_for("qwen2.5-72b-instruct", "awq")).values():
        assert list(contexts) == ["f16", "q8", "q8,q4", "q4"]
        assert sorted(contexts.values()) == list(contexts.values())
        assert contexts["f16"] > 0


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 81}, {"num_hidden_layers": 37}, {"hidden_size": 8320}])
def test_odd_geometries_fill_both_cards(changes: dict[str, int]) -> None:
    entry = catalog.entry("qwen2.5-72b-instruct")
    config = replace(entry.config(), **changes)
    if "hidden_size" in changes:
        config = replace(config, num_attention_heads=65, num_key_value_heads=5)
    checkpoint = describe("odd", entry.architecture, config, Description("awq"))
    request = replace(request_for(entry.name, "awq"), checkpoint=checkpoint)
    placer = placement.Placer(request)
    context = placer.best_context()
    placed = placer.evenly(context)
    assert [layer for share in placed.shares for layer in share.layers] == list(range(config.num_hidden_layers))
    blocks, demand = placer.blocks_of(context), request.demand
    assert all(share.num_bytes(demand, blocks) <= share.place.room for share in placed.shares)
    # One more block of the cache has no room on one of them.
    assert not all(share.num_bytes(demand, blocks + 1) <= share.place.room for share in placed.shares) or (
        placer.least_offloaded(context + 1) is None
    )
