"""The loader executes the plan and reports its progress in bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.layers.ffn import Ffn
from qlocal.layers.linear import QuantLinear
from qlocal.layers.loader import load_model
from qlocal.metrics import forward_logits
from qlocal.plan import make_plan
from qlocal.weights import Weight
from tests.memory_checkpoint import MemoryCheckpoint, random_ids
from tests.quantized_folders import write_quantized


@pytest.mark.parametrize("model_type", ["qwen2", "llama", "mixtral"])
def test_two_shares_of_the_cpu_give_the_same_logits_as_one(model_type: str) -> None:
    checkpoint = MemoryCheckpoint(model_type, {"num_hidden_layers": 3})
    one, two = (load_model(checkpoint, make_plan(checkpoint, ["cpu"] * n, dtype="float32")) for n in (1, 2))
    ids = random_ids(320, 17)
    assert torch.equal(forward_logits(one, ids), forward_logits(two, ids))


def test_reference_kernels_give_the_logits_of_the_fast_ones() -> None:
    checkpoint = MemoryCheckpoint("qwen2")
    plan = make_plan(checkpoint, ["cpu"], dtype="float32")
    ids = random_ids(320, 17)
    fast, plain = (forward_logits(load_model(checkpoint, plan, kernels), ids) for kernels in ("auto", "reference"))
    torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-4)


def test_what_must_not_be_rounded_coarsely_keeps_words(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_quantized(tmp_path, "qwen2", "awq", {"num_hidden_layers": 4}))
    decoder = load_model(checkpoint, make_plan(checkpoint, ["cpu"]))

    def keeps_words(linear: QuantLinear) -> bool:
        [matrix] = [part.weight.matrix for part in linear.parts()]
        if matrix is None:
            pytest.skip("there is no native library")
        return bool(matrix.matrix.keeps_words)

    kept = []
    for layer in decoder.layers:
        assert isinstance(layer.ffn, Ffn)
        kept.append([keeps_words(linear) for linear in (layer.qkv, layer.o, layer.ffn.gate_up, layer.ffn.down)])
    assert kept == 2 * [[True, False, False, False]] + 2 * [4 * [True]]


def test_progress_reaches_the_total_a_layer_at_a_time() -> None:
    checkpoint = MemoryCheckpoint("qwen2", {"num_hidden_layers": 3})
    seen: list[tuple[int, int]] = []
    layers: list[int | None] = []

    def note(done: int, total: int, layer: int | None) -> None:
        seen.append((done, total))
        layers.append(layer)

    load_model(checkpoint, make_plan(checkpoint, ["cpu"]), on_progress=note)
    total = sum(stored.num_bytes for stored in checkpoint.tensors.values())
    assert layers == [None, 0, 1, 2]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (total, total)


class Watched(MemoryCheckpoint):
    """Notes which tensors are asked for, and which are read."""

    def __init__(self) -> None:
        super().__init__("qwen2", {"num_hidden_layers": 3})
        self.asked: list[str] = []
        self.read_in_time: dict[str, bool] = {}

    def will_read(self, name: str) -> None:
        self.asked.append(name)

    def read(self, name: str) -> Weight:
        self.read_in_time[name] = name in self.asked
        return super().read(name)


def test_a_layer_is_asked_for_before_the_one_ahead_of_it_is_prepared() -> None:
    checkpoint = Watched()
    load_model(checkpoint, make_plan(checkpoint, ["cpu"]))
    assert sorted(checkpoint.asked) == sorted(checkpoint.tensors)
    embedding = "model.embed_tokens.weight"  # looked up in the map, a row at a time
    assert all(in_time for name, in_time in checkpoint.read_in_time.items() if name != embedding)
