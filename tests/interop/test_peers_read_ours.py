"""What `quantize` writes, loaded by transformers with GPTQModel and by llama.cpp."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.kernels import reference
from tests import tiny
from tests.interop import own_engine, peers

pytestmark = pytest.mark.real

IDS = [5, 17, 80, 33, 120, 7, 64, 200, 9, 41, 150, 28]
VARIANTS = {
    "awq": ["--format", "awq"],
    "awq-sym": ["--format", "awq", "--sym"],
    "gptq": ["--format", "gptq"],
    "gptq-asym": ["--format", "gptq", "--asym"],
    "gptq-desc-act": ["--format", "gptq", "--desc-act"],
}


def quantized(tmp_path: Path, model_type: str, options: list[str], name: str, overrides: dict[str, object]) -> Path:
    """Run the real command on a tiny checkpoint, with a text of its own for calibration."""
    source = tiny.write_checkpoint(tmp_path / "bf16", model_type, overrides)
    text = tmp_path / "calibration.txt"
    text.write_text("\n\n".join(tiny.TEXT) * 60, encoding="utf-8")
    out = tmp_path / name
    command = [sys.executable, "-m", "quantize.cli", str(source), "--out", str(out), *options]
    command += ["--calibration", str(text), "--raw", "--samples", "8", "--seq-len", "64", "--group-size", "32"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return out


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_transformers_reads_our_folder_with_the_same_weights(model_type: str, variant: str, tmp_path: Path) -> None:
    folder = quantized(tmp_path, model_type, VARIANTS[variant], variant, {})
    seen = peers.dump(folder, tmp_path / "seen.npz", IDS)
    checkpoint = open_checkpoint(folder)
    names = [name for name, stored in checkpoint.tensors.items() if stored.spec.is_quantized]
    assert {f"weight:{name.removesuffix('.weight')}" for name in names} == {k for k in seen if k.startswith("weight:")}
    for name in names:
        ours = reference.dequantize(checkpoint.read(name)).half().numpy()
        np.testing.assert_array_equal(ours, seen[f"weight:{name.removesuffix('.weight')}"], err_msg=name)

    exact = torch.from_numpy(seen["logits_float32"])
    ours = own_engine.logits(folder, torch.tensor([IDS]), "bfloat16")[0]
    peers_error = float((torch.from_numpy(seen["logits_bfloat16"]) - exact).abs().mean())
    our_error = float((ours - exact).abs().mean())
    print(f"\n{model_type} {variant}: mean error to float32 {our_error:.2g}, the peer's own {peers_error:.2g}")
    assert our_error <= 2 * peers_error


@pytest.mark.parametrize("mix", ["q4_0", "q4_k_m", "q5_k_s", "q6_k", "q8_0", "q4_1", "q5_0", "q5_1"])
@pytest.mark.parametrize("model_type", ["qwen2", "llama", "mixtral"])
def test_llama_cpp_reads_our_gguf_and_computes_the_same(model_type: str, mix: str, tmp_path: Path) -> None:
    overrides: dict[str, object] = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512}
    if model_type == "mixtral":
        overrides |= {"num_local_experts": 8}
    file = quantized(tmp_path, model_type, ["--format", "gguf", "--type", mix], f"{mix}.gguf", overrides)
    twin = tmp_path / "twin.gguf"
    own_engine.write_float32_twin(file, twin)
    tokens = torch.tensor([IDS])
    exact = torch.from_numpy(np.array(peers.llama_logits(twin, tokens.numpy(), tmp_path)))
    ours = own_engine.logits(file, tokens, "float32")
    assert own_engine.mean_kl(exact, ours) < 1e-6
    theirs = torch.from_numpy(np.array(peers.llama_logits(file, tokens.numpy(), tmp_path)))
    assert own_engine.mean_kl(exact, theirs) < 0.05  # it rounds activations to 8 bits
