"""Streams of single tensors against whole forward passes with that one tensor replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qlocal.formats.base import Checkpoint
from qlocal.kernels.reference import dequantize
from qlocal.weights import DenseWeight, Weight
from quantize.methods.ggml import quantize_ggml
from quantize.sensitivity import measure
from quantize.source import PaddedSource, open_source
from quantize.type_choice import candidate_types, is_chosen
from tests.quantize.conftest import logits


class Replaced(Checkpoint):
    """A source in which one stored tensor has its smallest type, fitted by the weights alone."""

    def __init__(self, source: PaddedSource, gguf_name: str) -> None:
        self.architecture, self.config = source.architecture, source.config
        self.tensors, self._source, self._gguf_name = source.tensors, source, gguf_name

    def will_read(self, name: str) -> None:
        self._source.will_read(name)

    def read(self, name: str) -> Weight:
        weight, spec = self._source.read(name), self.tensors[name].spec
        if spec.gguf_name != self._gguf_name:
            return weight
        small = quantize_ggml(weight.data, candidate_types(spec.shape[-1])[0], None)
        return DenseWeight(dequantize(small.weight).bfloat16())


def kl(expected: Tensor, found: Tensor) -> float:
    expected, found = expected.log_softmax(-1), found.log_softmax(-1)
    return float((expected.exp() * (expected - found)).sum(-1).mean())


@pytest.fixture(scope="module")
def source(tiny_checkpoint: Path) -> PaddedSource:
    checkpoint = open_source(tiny_checkpoint)
    return PaddedSource(checkpoint, checkpoint.config)


def test_what_a_tensor_is_worth_is_what_replacing_it_costs(
    source: PaddedSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Columns weigh the same here, so that the replaced weights are known without the inputs.
    monkeypatch.setattr("quantize.sensitivity._Run._record", without_importance)
    ids = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(5))
    measured = {s.name: s for s in measure(source, ids, tmp_path / "streams", "cpu")}
    assert set(measured) == {s.spec.gguf_name for s in source.tensors.values() if is_chosen(s.spec)}
    assert not (tmp_path / "streams").exists()
    expected = [logits(source, window) for window in ids]
    names = sorted(measured)
    for name in [*names[:: max(1, len(names) // 6)], "token_embd.weight"]:
        replaced = Replaced(source, name)
        found = sum(kl(e, logits(replaced, window)) for e, window in zip(expected, ids, strict=True)) / len(ids)
        assert measured[name].kl == pytest.approx(found, rel=0.02, abs=1e-7), name
        assert found > 0


def test_finer_types_lose_less(source: PaddedSource, tmp_path: Path) -> None:
    ids = torch.randint(0, 300, (1, 16), generator=torch.Generator().manual_seed(5))
    for sensitivity in measure(source, ids, tmp_path / "streams", "cpu"):
        types = list(sensitivity.errors)
        assert sensitivity.measured is types[0]
        assert sensitivity.kl_as(types[0]) == pytest.approx(sensitivity.kl)
        assert sensitivity.errors[types[-1]] < 0.1 * sensitivity.errors[types[0]], "Q8_0 is far finer than 4 bits"


def without_importance(self: object, layer: object, clean: Tensor) -> dict[object, Tensor]:
    self._streams[0] = self._forward(layer, clean)  # type: ignore[attr-defined]
    return {}
