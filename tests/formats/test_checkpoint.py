"""Opening checkpoints: every tensor is held against the table, and all problems come at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlocal.errors import CheckpointError, FormatError, UnsupportedError
from qlocal.formats.checkpoint import open_checkpoint
from tests import tiny


def test_a_bf16_folder_reads_back_every_tensor(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint)
    stored = load_file(tiny_checkpoint / "model.safetensors")
    assert checkpoint.format == "bf16" and set(checkpoint.tensors) == set(stored)
    for name, expected in stored.items():
        weight = checkpoint.read(name)
        assert torch.equal(weight.data, expected) and checkpoint.tensors[name].num_bytes == expected.nbytes


def test_shards_read_as_the_single_file(tmp_path: Path) -> None:
    single = open_checkpoint(tiny.write_checkpoint(tmp_path / "single"))
    sharded = open_checkpoint(tiny.write_checkpoint(tmp_path / "sharded", shards=3))
    assert list(single.tensors) == list(sharded.tensors)
    for name in single.tensors:
        assert torch.equal(single.read(name).data, sharded.read(name).data)


def test_opening_imports_no_torch(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m")
    code = (
        "import sys; from pathlib import Path; from qlocal.formats.checkpoint import open_checkpoint\n"
        f"c = open_checkpoint(Path({str(folder)!r})); c.tokenizer(); c.generation_defaults()\n"
        "assert not {'torch', 'numpy', 'safetensors', 'gguf'} & set(sys.modules), 'a heavy library was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_all_missing_extra_and_misshapen_tensors_are_told_at_once(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 4, dtype=torch.bfloat16)
    tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(3, 4, dtype=torch.bfloat16)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    text = " | ".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    assert "model.norm.weight is missing" in text
    assert "model.layers.0.mlp.up_proj.weight has shape (3, 4), expected (256, 128)" in text
    assert "model.layers.9.mlp.up_proj.weight is not part of a qwen2 model" in text
    assert "lm_head.weight is I32" in text


def test_a_truncated_shard_is_refused(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match=r"model\.safetensors: the header describes \d+ bytes, the file has"):
        open_checkpoint(folder)


def test_a_redundant_head_of_a_tied_model_is_ignored(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m", overrides={"tie_word_embeddings": True})
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    assert "lm_head.weight" not in open_checkpoint(folder).tensors


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m")
    raw = json.loads((folder / "config.json").read_text()) | {"model_type": "qwen3"}
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(UnsupportedError, match="model_type 'qwen3'"):
        open_checkpoint(folder)


@pytest.mark.parametrize("spelling", ["modules", "fused", "fused_mlp"])
def test_mixtral_experts_are_found_in_every_spelling(tmp_path: Path, spelling: str) -> None:
    original = open_checkpoint(tiny.write_checkpoint(tmp_path / "a", "mixtral"))
    folder = tiny.write_checkpoint(tmp_path / "b", "mixtral")
    save_file(_respelled(load_file(folder / "model.safetensors"), spelling), folder / "model.safetensors")
    respelled = open_checkpoint(folder)
    for name in original.tensors:
        assert torch.equal(respelled.read(name).data, original.read(name).data), name
        assert respelled.tensors[name].num_bytes == original.tensors[name].num_bytes


def _respelled(tensors: dict[str, torch.Tensor], spelling: str) -> dict[str, torch.Tensor]:
    names = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    if spelling == "modules":
        for short, long in names.items():
            tensors = {k.replace(f".{short}.", f".{long}."): v for k, v in tensors.items()}
        return {k.replace("block_sparse_moe", "mlp"): v for k, v in tensors.items()}
    fused = {k: v for k, v in tensors.items() if ".experts." not in k}
    for layer in range(2):
        prefix = f"model.layers.{layer}.block_sparse_moe.experts"
        parts = {w: torch.stack([tensors[f"{prefix}.{e}.{w}.weight"] for e in range(4)]) for w in names}
        target = prefix.replace("block_sparse_moe", "mlp") if spelling == "fused_mlp" else prefix
        fused[f"{target}.gate_up_proj"] = torch.cat((parts["w1"], parts["w3"]), dim=1)
        fused[f"{target}.down_proj"] = parts["w2"]
    return fused
