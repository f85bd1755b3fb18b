"""Layers and experts compute where the plan puts them, and the stream follows: the logits are those of one device.

The devices are `cpu:0`, `cpu:1` and `cpu`, which torch holds for different ones: everything is moved as between cards.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qlocal.config import CARD_RESERVE
from qlocal.layers.decoder import Decoder
from qlocal.layers.loader import load_model
from qlocal.layers.moe import MoeFfn
from qlocal.metrics import forward_logits
from qlocal.plan import Plan, make_plan, placement, places
from tests.memory_checkpoint import MemoryCheckpoint, random_ids

MIB, GIB = 1 << 20, 1 << 30
SIZES = {"num_hidden_layers": 6, "hidden_size": 256, "intermediate_size": 1024, "max_position_embeddings": 256}


ROOM = {"qwen2": 3 * MIB, "llama": 3 * MIB, "mixtral": 16 * MIB}
"""Of two cards: for some layers and not all."""


def offered(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be a host and two cards that hold a part of a model, beside activations that are not counted."""
    room = ROOM[model_type]
    monkeypatch.setattr(placement, "step_bytes", lambda *_, **__: 0)
    free = {"cpu": 4 * GIB, "cuda:0": CARD_RESERVE + room, "cuda:1": CARD_RESERVE + room}
    monkeypatch.setattr(places, "free_bytes", free.__getitem__)
    monkeypatch.setattr(places, "taken_bytes", lambda device: 0)


def without_cards(plan: Plan) -> Plan:
    """The same plan with every card a CPU of its own."""

    def name(device: str) -> str:
        return device.replace("cuda", "cpu")

    parts = tuple(replace(part, device=name(part.device)) for part in plan.devices)
    return replace(plan, devices=parts, head_device=name(plan.head_device))


def devices_of(decoder: Decoder) -> list[str]:
    return [str(layer.device) for layer in decoder.layers]


@pytest.mark.parametrize("model_type", ["qwen2", "llama", "mixtral"])
def test_offloaded_layers_give_the_logits_of_one_device(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    offered(model_type, monkeypatch)
    checkpoint = MemoryCheckpoint(model_type, SIZES)
    plan = make_plan(checkpoint, ["cuda:0", "cuda:1"], slots=1, dtype="float32", offload="layers")
    decoder = load_model(checkpoint, without_cards(plan))
    assert set(devices_of(decoder)) == {"cpu", "cpu:0", "cpu:1"}
    assert devices_of(decoder) == sorted(devices_of(decoder)), "the host comes first, then the cards in order"
    whole = load_model(checkpoint, make_plan(checkpoint, ["cpu"], dtype="float32"))
    ids = random_ids(320, 17)
    assert torch.equal(forward_logits(decoder, ids), forward_logits(whole, ids))


def test_offloaded_experts_give_the_logits_of_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    offered("mixtral", monkeypatch)
    checkpoint = MemoryCheckpoint("mixtral", SIZES)
    plan = make_plan(checkpoint, ["cuda:0", "cuda:1"], slots=1, dtype="float32")
    assert 0 < len(plan.host_experts) < 6
    decoder = load_model(checkpoint, without_cards(plan))
    assert set(devices_of(decoder)) == {"cpu:0", "cpu:1"}
    experts = [str(layer.ffn._expert_device) for layer in decoder.layers if isinstance(layer.ffn, MoeFfn)]
    assert experts == ["cpu"] * len(plan.host_experts) + devices_of(decoder)[len(plan.host_experts) :]
    whole = load_model(checkpoint, make_plan(checkpoint, ["cpu"], dtype="float32"))
    ids = random_ids(320, 17)
    assert torch.equal(forward_logits(decoder, ids), forward_logits(whole, ids))
