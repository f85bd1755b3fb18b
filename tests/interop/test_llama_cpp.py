"""Published GGUF files, and ours, against the real llama.cpp."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.guard.client import Guard
from qlocal.kernels import reference
from qlocal.tokenizer.tokenizer import Tokenizer
from tests.interop import own_engine, peers

pytestmark = pytest.mark.real

PUBLISHED = ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]
CHUNKS, LENGTH = 8, 256


def published(name: str) -> Path:
    path = peers.real_models() / f"{name}.gguf"
    if not path.exists():
        pytest.skip(f"{path.name} is not in QLOCAL_REAL_MODELS")
    return path


def text_tokens(path: Path, shared_data: Path) -> torch.Tensor:
    """Return (C, S) token ids: consecutive windows of an English text."""
    text = (shared_data / "text" / "eval-wiki.txt").read_text(encoding="utf-8")[:30_000]
    with Guard() as guard:
        ids = Tokenizer.load(open_checkpoint(path).tokenizer(), guard).encode(text)
    return torch.tensor(ids[: CHUNKS * LENGTH]).view(CHUNKS, LENGTH)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_weight_of_a_published_file_equals_the_gguf_packages(name: str) -> None:
    path = published(name)
    checkpoint = open_checkpoint(path)
    peers_tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for stored in checkpoint.tensors.values():
        peer = peers_tensors[stored.spec.gguf_name]
        theirs = torch.from_numpy(
            np.array(gguf.dequantize(peer.data, peer.tensor_type))
        )  # a copy: the map is read-only
        weight = checkpoint.read(stored.spec.name)
        row_map = getattr(weight, "row_map", None)
        expected = theirs if row_map is None else theirs[row_map]
        assert torch.equal(reference.dequantize(weight), expected.float()), stored.spec.name


@pytest.mark.parametrize("name", PUBLISHED)
def test_logits_equal_llama_cpps_on_the_same_weights_in_float32(name: str, tmp_path: Path, shared_data: Path) -> None:
    path = published(name)
    twin = tmp_path / "twin.gguf"
    own_engine.write_float32_twin(path, twin)
    tokens = text_tokens(path, shared_data)
    theirs = torch.from_numpy(np.array(peers.llama_logits(twin, tokens.numpy(), tmp_path)))
    ours = own_engine.logits(twin, tokens, "float32")
    kl = own_engine.mean_kl(theirs, ours)
    print(f"\n{name}: mean KL to llama.cpp on the float32 twin {kl:.3g}")
    assert kl < 1e-4


@pytest.mark.parametrize("name", PUBLISHED)
def test_quantized_files_answer_like_llama_cpp(name: str, tmp_path: Path, shared_data: Path) -> None:
    """llama.cpp rounds activations to 8 bits, so the distance is reported; far off would still be a fault."""
    path = published(name)
    tokens = text_tokens(path, shared_data)
    theirs = torch.from_numpy(np.array(peers.llama_logits(path, tokens.numpy(), tmp_path)))
    ours = own_engine.logits(path, tokens, "bfloat16")
    kl = own_engine.mean_kl(theirs, ours)
    print(f"\n{name}: mean KL to llama.cpp on the quantized file {kl:.3g}")
    assert kl < 0.05
