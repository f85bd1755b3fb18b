"""Heads in codes between us and GPTQModel, both ways. (transformers leaves heads in 16 bits: `docs/formats.md`.)"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.kernels import reference
from tests import tiny
from tests.interop import own_engine, peers
from tests.interop.test_peers_read_ours import IDS, quantized

pytestmark = pytest.mark.real

HEAD = "lm_head.weight"
VARIANTS = {
    "awq": ["--format", "awq"],
    "gptq": ["--format", "gptq"],
    "gptq-asym": ["--format", "gptq", "--asym"],
    "gptq-desc-act": ["--format", "gptq", "--desc-act"],
}


def seen_by_peer(folder: Path, scratch: Path) -> dict[str, np.ndarray]:
    peers.run("peer_head.py", "load", folder, scratch / "seen.npz", *IDS)
    with np.load(scratch / "seen.npz") as arrays:
        return dict(arrays)


def compare(folder: Path, seen: dict[str, np.ndarray]) -> None:
    ours = reference.dequantize(open_checkpoint(folder).read(HEAD)).half().numpy()
    np.testing.assert_array_equal(ours, seen["head"])
    logits = own_engine.logits(folder, torch.tensor([IDS]), "float32")
    assert own_engine.mean_kl(torch.from_numpy(seen["logits"])[None], logits) < 1e-3  # it computes in 16 bits


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
def test_gptqmodel_reads_our_head_with_the_same_weights(variant: str, tied: bool, tmp_path: Path) -> None:
    options = [*VARIANTS[variant], "--quantize-head"]
    folder = quantized(tmp_path, "llama", options, variant, {"tie_word_embeddings": tied})
    compare(folder, seen_by_peer(folder, tmp_path))


def test_we_read_the_head_that_gptqmodel_quantizes(tmp_path: Path) -> None:
    source = tiny.write_checkpoint(tmp_path / "bf16", "llama")
    peers.run("peer_head.py", "make", source, tmp_path / "made", 4)
    assert open_checkpoint(tmp_path / "made").tensors[HEAD].group_size == 32
    compare(tmp_path / "made", seen_by_peer(tmp_path / "made", tmp_path))
