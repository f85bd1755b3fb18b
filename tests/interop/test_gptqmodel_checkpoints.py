"""Checkpoints that GPTQModel 7.7 made of tiny models: small files that must stay readable for ever."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.kernels import reference
from qlocal.weights import AffineWeight

FOLDERS = sorted(p for p in (Path(__file__).parents[1] / "golden" / "gptqmodel").iterdir() if p.is_dir())


def float16_digest(weight: torch.Tensor) -> str:
    return hashlib.sha256(np.ascontiguousarray(weight.to(torch.float16).numpy()).tobytes()).hexdigest()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_weights_equal_the_peers_own_to_the_bit(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())["weights"]
    checkpoint = open_checkpoint(folder)
    affine = {
        name.removesuffix(".weight"): checkpoint.read(name)
        for name, stored in checkpoint.tensors.items()
        if stored.spec.is_quantized
    }
    assert all(isinstance(weight, AffineWeight) for weight in affine.values())
    found = {name: float16_digest(reference.dequantize(weight)) for name, weight in affine.items()}
    assert found == expected
