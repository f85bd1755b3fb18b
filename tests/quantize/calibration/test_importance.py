"""GGUF by an importance file: every tensor is fitted by what the file says; one that does not fit is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qlocal.errors import CheckpointError
from qlocal.formats.gguf_reader import read_gguf
from qlocal.formats.gguf_rows import permute_rows
from qlocal.formats.type_mix import is_linear
from qlocal.models import ARCHITECTURES
from qlocal.models.base import Role
from quantize.calibration.importance import Importance
from quantize.cli import main
from quantize.methods.ggml import quantize_ggml
from quantize.options import Options
from quantize.recipe import Recipe, make_recipe
from quantize.source import open_source
from tests import tiny
from tests.formats import imatrix_files
from tests.quantize.conftest import Quantize, divergence


def recipe_of(model_type: str, **overrides: object) -> Recipe:
    config = replace(tiny.tiny_config(model_type), **overrides)
    return make_recipe(ARCHITECTURES[model_type], config, Options("m", Path("m.gguf"), ("gguf",)), "m")


def importance_of(recipe: Recipe, *, source_width: bool = False) -> dict[str, Tensor]:
    """Return made-up mean squares as uneven as real ones, by GGUF name; (experts, K) where there are experts."""
    config = recipe.source_config if source_width else recipe.config
    found: dict[str, Tensor] = {}
    for seed, spec in enumerate(recipe.architecture.tensors(config)):
        if is_linear(spec) and spec.layer is not None and spec.gguf_name not in found:
            rows = 1 if spec.expert is None else config.num_experts
            generator = torch.Generator().manual_seed(seed)
            found[spec.gguf_name] = torch.randn(rows, spec.shape[1], generator=generator).mul(1.5).exp()
    return found


def test_both_formats_give_the_same_importance(tmp_path: Path) -> None:
    recipe = recipe_of("mixtral")
    entries = importance_of(recipe)
    specs = list(recipe.architecture.tensors(recipe.config))
    for path in (
        imatrix_files.write_legacy(tmp_path / "m.dat", entries),
        imatrix_files.write_gguf(tmp_path / "m.gguf", entries),
    ):
        found = Importance(path, recipe).of(specs)
        assert set(found) == {spec.name for spec in specs if spec.gguf_name in entries}
        for spec in specs:
            if spec.name in found:
                torch.testing.assert_close(found[spec.name], entries[spec.gguf_name][spec.expert or 0])


def test_file_of_the_unpadded_model_fits_and_padding_counts_nothing(tmp_path: Path) -> None:
    recipe = recipe_of("qwen2", intermediate_size=300)
    assert recipe.config.intermediate_size == 512
    entries = importance_of(recipe, source_width=True)
    importance = Importance(imatrix_files.write_legacy(tmp_path / "m.dat", entries), recipe)
    down = next(s for s in recipe.architecture.tensors(recipe.config) if s.role is Role.DOWN)
    values = importance.of([down])[down.name]
    torch.testing.assert_close(values[:300], entries[down.gguf_name][0])
    assert values.shape == (512,) and not values[300:].any()


def test_expert_that_saw_no_token_is_reported_and_has_no_importance(tmp_path: Path) -> None:
    recipe = recipe_of("mixtral")
    entries = importance_of(recipe)
    name = "blk.1.ffn_up_exps.weight"
    counts = torch.full((recipe.config.num_experts,), 9.0)
    counts[2] = 0
    importance = Importance(imatrix_files.write_gguf(tmp_path / "m", entries, {name: counts}), recipe)
    unseen = [note for note in importance.notes if "saw no token" in note]
    assert len(unseen) == 1 and "layers.1" in unseen[0]
    ups = [s for s in recipe.architecture.tensors(recipe.config) if s.gguf_name == name]
    assert set(importance.of(ups)) == {s.name for s in ups if s.expert != 2}


def test_matrix_that_saw_no_token_is_reported_and_has_no_importance(tmp_path: Path) -> None:
    recipe = recipe_of("qwen2")
    name = "blk.0.ffn_gate.weight"
    path = imatrix_files.write_gguf(tmp_path / "m", importance_of(recipe), {name: torch.zeros(1)})
    importance = Importance(path, recipe)
    gate = next(s for s in recipe.architecture.tensors(recipe.config) if s.gguf_name == name)
    assert importance.of([gate]) == {}
    assert [note for note in importance.notes if gate.module in note and "saw no token" in note]


def test_everything_that_does_not_fit_is_in_one_error(tmp_path: Path) -> None:
    recipe = recipe_of("qwen2")
    entries = importance_of(recipe)
    del entries["blk.0.attn_k.weight"]
    entries["blk.1.ffn_down.weight"] = torch.ones(7)
    with pytest.raises(CheckpointError) as caught:
        Importance(imatrix_files.write_legacy(tmp_path / "m.dat", entries), recipe)
    assert "m.dat: does not fit this model" in str(caught.value)
    assert "blk.0.attn_k.weight is missing" in str(caught.value)
    assert "blk.1.ffn_down.weight has 7 values in 1 parts, expected 256" in str(caught.value)


def test_result_is_fitted_by_the_file_alone_and_says_so(qwen2: Path, run: Quantize, tmp_path: Path) -> None:
    source = open_source(qwen2)
    recipe = make_recipe(source.architecture, source.config, Options("m", Path("m.gguf"), ("gguf",)), "m")
    entries = importance_of(recipe)
    file = imatrix_files.write_legacy(tmp_path / "own.dat", entries, calls=1)
    out = run(qwen2, "--format", "gguf", "--imatrix", str(file), out="m.gguf")
    stored = read_gguf(out).tensors
    for spec in source.architecture.tensors(source.config):
        if spec.gguf_name in entries:
            tensor = stored[spec.gguf_name]
            weight = source.read(spec.name).data
            blocks = quantize_ggml(weight, tensor.ggml_type, entries[spec.gguf_name][0]).weight.blocks
            expected = permute_rows(blocks, spec.permuted_heads) if spec.permuted_heads else blocks
            assert tensor.file.read(tensor.offset, tensor.num_bytes) == expected.numpy().tobytes(), spec.name
    report = json.loads(out.with_suffix(".json").read_text())
    assert report["calibration"].startswith("No calibration texts")
    assert any("own.dat" in note and "without error feedback" in note for note in report["notes"])
    assert divergence(qwen2, out) < 0.15


def test_folders_are_calibrated_beside_a_gguf_result_by_file(qwen2: Path, run: Quantize, tmp_path: Path) -> None:
    source = open_source(qwen2)
    recipe = make_recipe(source.architecture, source.config, Options("m", Path("m.gguf"), ("gguf",)), "m")
    file = imatrix_files.write_gguf(tmp_path / "own.gguf", importance_of(recipe))
    alone = run(qwen2, "--format", "gguf", "--imatrix", str(file), out="m.gguf")
    both = run(qwen2, "--format", "gptq,gguf", "--imatrix", str(file), out="both")
    assert next(both.glob("*.gguf")).stat().st_size == alone.stat().st_size
    blocks = [{t.name: t.file.read(t.offset, t.num_bytes) for t in read_gguf(path).tensors.values()}
              for path in (alone, next(both.glob("*.gguf")))]  # fmt: skip
    assert blocks[0] == blocks[1]
    report = json.loads((both / "gptq" / "quantization_report.json").read_text())
    assert report["calibration"].startswith("Calibrated on 8 windows")


def test_another_file_does_not_continue_the_work(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = open_source(qwen2)
    recipe = make_recipe(source.architecture, source.config, Options("m", Path("m.gguf"), ("gguf",)), "m")
    entries = importance_of(recipe)
    file = imatrix_files.write_legacy(tmp_path / "own.dat", entries, calls=1)
    arguments = [str(qwen2), "--format", "gguf", "--out", str(tmp_path / "m.gguf"), "--no-verify", "--imatrix"]
    with monkeypatch.context() as patch:
        patch.setattr("quantize.pipeline._Run.place", interrupt)
        assert main([*arguments, str(file)]) == 130
    other = imatrix_files.write_legacy(tmp_path / "other.dat", {n: v + 1 for n, v in entries.items()})
    capsys.readouterr()
    assert main([*arguments, str(other)]) == 2
    assert "importance file was" in capsys.readouterr().err
    assert main([*arguments, str(file)]) == 0


def interrupt(_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--format", "awq", "--imatrix", "FILE"], "--imatrix FILE belongs to --format gguf"),
        (["--format", "gguf", "--imatrix", "FILE", "--rtn"], "--rtn looks at the weights alone"),
        (["--format", "gguf", "--imatrix", "--no-imatrix"], "not allowed with"),
        (["--format", "gguf", "--imatrix", "FILE"], "own.dat: does not fit this model"),
        (["--format", "gguf", "--imatrix", "FILE", "--dry-run"], "own.dat: does not fit this model"),
        (["--format", "gguf", "--imatrix", "absent.dat"], "absent.dat: cannot be opened"),
    ],
)
def test_wrong_use_ends_in_one_sentence(
    arguments: list[str], text: str, qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = imatrix_files.write_legacy(tmp_path / "own.dat", {"blk.0.attn_q.weight": torch.ones(128)})
    given = [str(file) if argument == "FILE" else argument for argument in arguments]
    assert main([str(qwen2), "--out", str(tmp_path / "m.gguf"), *given]) == 2
    errors = capsys.readouterr().err
    assert text in errors and len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "m.gguf").exists()
