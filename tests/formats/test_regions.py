"""A region of a tensor has the values of that region, whatever the format; and only its bytes are read."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch

from qlocal.formats.base import Checkpoint, Region
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.kernels.reference import dequantize
from qlocal.models.base import Role
from qlocal.weights import AffineWeight, Weight
from tests import tiny
from tests.formats.gguf_files import write_tiny_gguf
from tests.quantized_folders import write_quantized

WIDE = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 512}


def values(weight: Weight) -> torch.Tensor:
    return dequantize(weight)


@pytest.fixture(scope="module", params=["bf16", "awq", "gptq", "gptq-act-order", "gptq-row", "q8_0", "q4_0"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Llama's q and k stand in another order in GGUF files."""
    folder, kind = tmp_path_factory.mktemp("regions"), request.param
    if kind == "bf16":
        return open_checkpoint(tiny.write_checkpoint(folder / "m", "llama", WIDE))
    if kind.startswith("q"):
        write_tiny_gguf(folder / "m.gguf", "llama", kind, WIDE)
        return open_checkpoint(folder / "m.gguf")
    size = -1 if kind == "gptq-row" else 64
    method = kind.partition("-")[0]
    path = write_quantized(folder / "m", "llama", method, WIDE, size, desc_act=kind == "gptq-act-order")
    return open_checkpoint(path)


@pytest.mark.parametrize(
    "region", [Region(rows=range(64, 160)), Region(columns=range(64, 256))], ids=["rows", "columns"]
)
def test_a_region_has_the_values_of_the_whole(checkpoint: Checkpoint, region: Region) -> None:
    for name, stored in checkpoint.tensors.items():
        if not stored.spec.is_quantized or (region.rows and region.rows.stop > stored.shape[0]):
            continue
        part, whole = checkpoint.read(name, region), values(checkpoint.read(name))
        rows, columns = region.rows or range(stored.shape[0]), region.columns or range(stored.shape[1])
        assert torch.equal(values(part), whole[rows.start : rows.stop, columns.start : columns.stop]), name


def test_a_cut_inside_a_group_keeps_its_scale_on_both_sides(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_quantized(tmp_path / "m", "qwen2", "awq", WIDE, group_size=128))
    name = "model.layers.0.self_attn.o_proj.weight"
    whole, (left, right) = (
        checkpoint.read(name),
        (checkpoint.read(name, Region(columns=columns)) for columns in (range(96), range(96, 256))),
    )
    assert isinstance(left, AffineWeight) and isinstance(right, AffineWeight) and isinstance(whole, AffineWeight)
    assert left.group_size == right.group_size == 32
    assert torch.equal(left.scales[:, 0], right.scales[:, 0]) and torch.equal(left.scales[:, 0], whole.scales[:, 0])
    assert torch.equal(torch.cat((values(left), values(right)), 1), values(whole))


def test_a_region_of_a_bias_follows_its_rows(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.write_checkpoint(tmp_path / "m", "qwen2"))
    (name,) = (
        n for n, s in checkpoint.tensors.items() if s.spec.is_bias and s.spec.role is Role.Q and s.spec.layer == 0
    )
    whole, part = checkpoint.read(name), checkpoint.read(name, Region(rows=range(32, 96)))
    assert torch.equal(part.data, whole.data[32:96])  # type: ignore[union-attr]


def test_rows_of_a_mapped_file_are_not_copied(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "m.gguf", "qwen2", "q8_0")
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    name = "model.layers.0.mlp.up_proj.weight"
    whole, part = checkpoint.read(name), checkpoint.read(name, Region(rows=range(32, 64)))
    row_bytes = 128 // 32 * gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_0][1]
    assert part.blocks.data_ptr() == whole.blocks.data_ptr() + 32 * row_bytes  # type: ignore[union-attr]


def test_a_cut_through_a_block_or_a_head_is_a_mistake_of_ours(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "m.gguf", "llama", "q8_0")
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    with pytest.raises(AssertionError, match="part a block of 32"):
        checkpoint.read("model.layers.0.self_attn.o_proj.weight", Region(columns=range(16, 64)))
    with pytest.raises(AssertionError, match="part a head of 32"):
        checkpoint.read("model.layers.0.self_attn.q_proj.weight", Region(rows=range(16, 64)))
