"""Plans from headers alone: bytes of the real geometries, group sizes, padding, places."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qlocal.errors import UsageError
from qlocal.models import ARCHITECTURES
from qlocal.models.base import ModelConfig
from qlocal.models.config_fields import parse_config
from quantize.cli import main
from quantize.options import Options, parse_size
from quantize.recipe import fitting_group_size, make_recipe, outputs
from tests import tiny

QWEN2_72B = {
    "model_type": "qwen2", "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 152064, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "rope_theta": 1e6,
}  # fmt: skip
LLAMA3_70B = QWEN2_72B | {"model_type": "llama", "intermediate_size": 28672, "vocab_size": 128256}
MIXTRAL_8X7B = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5, "rope_theta": 1e6,
}  # fmt: skip

# docs/formats.md, sections 1.6 and 4.2
BYTES = [
    (QWEN2_72B, "awq", "auto", 41_595_518_976),
    (QWEN2_72B, "awq", "none", 41_464_774_656),
    (QWEN2_72B, "q4_k_m", "auto", 44_004_474_880),
    (QWEN2_72B, "q4_k_m", "none", 47_409_725_440),
    (QWEN2_72B, "q4_k_s", "auto", 41_755_279_360),
    (QWEN2_72B, "q5_k_m", "none", 54_441_476_096),
    (QWEN2_72B, "q6_k", "auto", 59_855_044_608),
    (LLAMA3_70B, "awq", "auto", 39_767_785_472),
    (LLAMA3_70B, "q4_k_m", "auto", 42_512_531_456),
    (LLAMA3_70B, "q5_k_s", "auto", 48_649_584_640),
    (MIXTRAL_8X7B, "q4_k_m", "auto", 28_447_727_616),
]


def config_of(raw: dict[str, object]) -> ModelConfig:
    return parse_config(raw, ARCHITECTURES[str(raw["model_type"])], "config.json")


def options(result: str, **changes: object) -> Options:
    formats, types = ((result,), ()) if result in ("awq", "gptq") else (("gguf",), (result,))
    out = Path("/out.gguf") if types else Path("/out")
    return Options("model", out, formats, types, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("raw", "result", "pad_ffn", "expected"), BYTES)
def test_bytes_of_real_geometries(raw: dict[str, object], result: str, pad_ffn: str, expected: int) -> None:
    config = config_of(raw)
    recipe = make_recipe(ARCHITECTURES[config.model_type], config, options(result, pad_ffn=pad_ffn), "m")
    assert recipe.targets[0].num_bytes == expected


def test_plain_q4_0_follows_the_rule_without_a_matrix() -> None:
    config = config_of(QWEN2_72B)
    for imatrix, expected in ((False, 41_367_306_240), (True, 41_519_349_760)):
        recipe = make_recipe(ARCHITECTURES["qwen2"], config, options("q4_0", imatrix=imatrix), "m")
        assert recipe.targets[0].num_bytes == expected


def test_gptq_adds_four_bytes_an_input() -> None:
    config = config_of(QWEN2_72B)
    recipe = make_recipe(ARCHITECTURES["qwen2"], config, options("gptq"), "m")
    inputs = 80 * (6 * 8192 + 29696)
    assert recipe.targets[0].num_bytes == 41_595_518_976 + 4 * inputs


def test_group_size_is_lowered_until_it_divides_every_width() -> None:
    config = tiny.tiny_config("llama", {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 1})
    size, notes = fitting_group_size(ARCHITECTURES["llama"], config, 128)
    assert size == 64
    assert notes == ["Group size 64 instead of 128, which does not divide the widths 192."]
    odd = tiny.tiny_config("llama", {"hidden_size": 144, "num_attention_heads": 9, "num_key_value_heads": 9})
    with pytest.raises(UsageError, match="divides the widths 144, 256"):
        fitting_group_size(ARCHITECTURES["llama"], odd, 128)


def test_places_of_one_and_of_several_results() -> None:
    both = Options("m", Path("/models/x"), ("awq", "gguf"), ("q4_0", "q6_k"))
    assert {name: str(path) for name, path in outputs(both, "x").items()} == {
        "awq": "/models/x/awq",
        "q4_0": "/models/x/x-q4_0.gguf",
        "q6_k": "/models/x/x-q6_k.gguf",
    }
    assert outputs(options("gptq"), "x") == {"gptq": Path("/out")}


@pytest.mark.parametrize(("text", "expected"), [("5GB", 5 * 10**9), ("512MiB", 512 << 20), ("20G", 20 * 10**9)])
def test_sizes_are_read_with_their_unit(text: str, expected: int) -> None:
    assert parse_size(text, "--shard-size") == expected


def test_dry_run_prints_everything_and_writes_nothing(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tiny_checkpoint), "--format", "awq,gptq,gguf", "--out", str(tmp_path / "out"), "--dry-run"]
    assert main([*arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert main([a for a in arguments if a != "--dry-run"] + ["--rtn"]) == 0
    for result in plan["results"]:
        assert result["tensor_bytes"] == sum(tensor["bytes"] for tensor in result["tensors"])
        assert Path(result["path"]).exists()
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "model.layers.1.self_attn.q_proj.weight" in shown
    assert "Memory at the peak" in shown


def test_dry_run_by_catalogue_name_needs_no_torch_and_no_files(tmp_path: Path) -> None:
    code = (
        "import sys; from quantize.cli import main;"
        f"out = {str(tmp_path / 'out')!r};"
        "code = main(['qwen2.5-72b-instruct', '--format', 'awq,gguf', '--out', out, '--dry-run']);"
        "sys.exit(code or ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "44,004,474,880 bytes" in done.stdout
    assert "41,595,518,976 bytes" in done.stdout
    assert "padded from 29568 to 29696" in done.stdout
    assert not any(tmp_path.iterdir())
