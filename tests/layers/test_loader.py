"""The loader executes the plan and reports its progress in bytes."""

from __future__ import annotations

import pytest
import torch

from qlocal.layers.loader import load_model
from qlocal.metrics import forward_logits
from qlocal.plan import make_plan
from tests.memory_checkpoint import MemoryCheckpoint, random_ids


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


def test_progress_reaches_the_total_a_layer_at_a_time() -> None:
    checkpoint = MemoryCheckpoint("qwen2", {"num_hidden_layers": 3})
    seen: list[tuple[int, int]] = []
    load_model(checkpoint, make_plan(checkpoint, ["cpu"]), on_progress=lambda done, total: seen.append((done, total)))
    total = sum(stored.num_bytes for stored in checkpoint.tensors.values())
    assert len(seen) == 4
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (total, total)
