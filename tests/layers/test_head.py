"""An output head of 16 bits that is held in fewer: what changes, what does not, and what is said about it."""

from __future__ import annotations

import pytest
import torch

from qlocal.errors import UnsupportedError
from qlocal.ggml_types import GgmlType
from qlocal.kernels import native, reference
from qlocal.layers import head
from qlocal.layers.loader import load_model
from qlocal.metrics import forward_logits
from qlocal.plan import make_plan
from qlocal.weights import BlockWeight, DenseWeight
from tests.memory_checkpoint import MemoryCheckpoint, random_ids

needs_native = pytest.mark.skipif(isinstance(native.load(), native.Absent), reason="needs the native kernels")
IDS = random_ids(320, 17)


@needs_native
@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
@pytest.mark.parametrize(("choice", "most", "bytes_a_row"), [("q8_0", 1e-4, 272), ("q6_k", 2e-3, 210)])
def test_held_head_loses_little_and_only_in_the_product(choice: str, most: float, bytes_a_row: int, tied: bool) -> None:
    checkpoint = MemoryCheckpoint("qwen2", {"hidden_size": 256, "tie_word_embeddings": tied})
    stored, held = (
        load_model(checkpoint, make_plan(checkpoint, ["cpu"], dtype="float32", head=h)) for h in ("stored", choice)
    )
    assert stored.held_head is None and held.held_head is not None
    assert (held.held_head.type, held.held_head.held_bytes) == (choice, 320 * bytes_a_row)
    assert held.held_head.saved_bytes == 320 * (512 - bytes_a_row)
    assert 0 < held.held_head.loss < most
    wanted, found = (forward_logits(decoder, IDS) for decoder in (stored, held))
    assert 0 < float((wanted - found).square().sum() / wanted.square().sum()) < 2 * most
    assert torch.equal(stored.embedding(torch.tensor(IDS)), held.embedding(torch.tensor(IDS)))


@needs_native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_reported_loss_is_that_of_the_values(dtype: torch.dtype) -> None:
    values = torch.randn((40, 256), generator=torch.Generator().manual_seed(3)).to(dtype)
    weight, held = head.hold(DenseWeight(values), "q6_k")
    assert isinstance(weight, BlockWeight) and weight.ggml_type is GgmlType.Q6_K and held is not None
    error = (reference.dequantize(weight) - values.float()).square().sum() / values.float().square().sum()
    assert held.loss == pytest.approx(float(error), rel=1e-4)
    assert held.stored_bytes == values.nbytes


def test_quantized_head_stays_as_it_is_stored() -> None:
    blocks = BlockWeight(torch.zeros((8, 34), dtype=torch.uint8), GgmlType.Q8_0, 32)
    assert head.hold(blocks, "q8_0") == (blocks, None)
    dense = DenseWeight(torch.zeros(8, 32))
    assert head.hold(dense, "stored") == (dense, None)


def test_without_native_kernels_the_option_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda: native.Absent("no compiler was found"))
    with pytest.raises(UnsupportedError, match=r"cannot be held as q8_0: no compiler was found.*--head"):
        head.hold(DenseWeight(torch.zeros(8, 32)), "q8_0")


@needs_native
def test_reference_kernels_multiply_by_a_held_head_too() -> None:
    checkpoint = MemoryCheckpoint("qwen2")
    plan = make_plan(checkpoint, ["cpu"], dtype="float32", head="q8_0")
    fast, plain = (forward_logits(load_model(checkpoint, plan, kernels), IDS) for kernels in ("auto", "reference"))
    torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-4)
