import json
from pathlib import Path

import pytest

from quantize.cli import main
from tests import tiny
from tests.quantize.conftest import Quantize
from tests.quantize.damage import double_scales

LIMITS = ["--chunks", "4", "--length", "64"]
RESULTS = {"awq": ("awq",), "gptq": ("gptq",), "gguf": ("gguf", "--type", "q4_0")}


def quantized(source: Path, run: Quantize, kind: str, *arguments: str) -> Path:
    """Return a result of this kind, made without the gate."""
    name = "out.gguf" if kind == "gguf" else "out"
    return run(source, "--format", *RESULTS[kind], *arguments, out=name)


def report_of(out: Path) -> dict:  # type: ignore[type-arg]
    place = out.with_suffix(".json") if out.suffix == ".gguf" else out / "quantization_report.json"
    return json.loads(place.read_text())


@pytest.mark.parametrize("kind", RESULTS)
def test_doubled_scales_fail_the_gate_and_the_report_shows_the_layer(
    tiny_checkpoint: Path, run: Quantize, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = quantized(tiny_checkpoint, run, kind)
    assert main(["verify", str(out), "--source", str(tiny_checkpoint)]) == 0
    before = report_of(out)["verify"]["linear_errors"]
    capsys.readouterr()
    assert max(before.values()) < 0.05

    double_scales(out, layer=1)
    assert main(["verify", str(out), "--source", str(tiny_checkpoint)]) == 3
    said = capsys.readouterr().err
    assert "fails the gate" in said and "layer 1 " in said and "layer 0 " not in said
    gate = report_of(out)["verify"]
    assert gate["passed"] is False
    damaged = {name for name, error in gate["linear_errors"].items() if error > gate["limits"]["max_linear_error"]}
    assert damaged and all(name.startswith("model.layers.1.") for name in damaged)
    undamaged = {name: error for name, error in gate["linear_errors"].items() if "layers.1." not in name}
    assert undamaged == pytest.approx({name: before[name] for name in undamaged})
    page = (out.with_suffix(".html") if kind == "gguf" else out / "quantization_report.html").read_text()
    assert "The gate failed" in page and "layer 1 " in page


def test_folded_scales_are_not_taken_for_damage(tmp_path: Path, run: Quantize) -> None:
    """AWQ divides norms, v (where it has as many heads as o) and up: stored weights differ, outputs do not."""
    source = tiny.write_checkpoint(tmp_path / "m", "llama", {"num_key_value_heads": 4})
    out = run(source, "--format", "awq,gptq")
    assert main(["verify", str(out), "--source", str(source)]) == 0
    awq, gptq = (report_of(out / name)["verify"]["linear_errors"] for name in ("awq", "gptq"))
    for name, error in awq.items():
        if name.startswith("model.layers."):
            assert error < 3 * gptq[name] + 1e-3, name


def test_gate_runs_at_the_end_and_its_measures_stand_in_the_report(
    qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([str(qwen2), "--out", str(out), "--format", "gptq", "--samples", "8", "--seq-len", "128"]) == 0
    assert "The gate took" in capsys.readouterr().err
    gate = report_of(out)["verify"]
    assert gate["passed"] is True
    for measure in ("mean_kl", "median_kl", "p99_kl", "max_kl", "top1", "ppl", "ppl_source"):
        assert gate[measure] >= 0
    assert gate["stops"]["count"] > 10
    assert "Against its source" in (out / "README.md").read_text()


def test_failed_gate_leaves_the_result_and_ends_with_code_three(
    qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--format", "awq", "--rtn", "--max-kl", "1e-6"]
    assert main([str(qwen2), "--out", str(out), *arguments]) == 3
    said = capsys.readouterr().err
    assert "out fails the gate: mean KL" in said and "is above 1e-06" in said and "largest output errors: layer" in said
    assert report_of(out)["verify"]["passed"] is False
    assert main(["verify", str(out), "--source", str(qwen2), *LIMITS]) == 0


def test_source_verifies_against_itself(qwen2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--max-kl", "0", "--min-top1", "1", "--max-linear-error", "0"]
    assert main(["verify", str(qwen2), "--source", str(qwen2), *LIMITS, *limits]) == 0
    assert "passed" in capsys.readouterr().out


def test_all_results_of_a_folder_are_verified_at_once(
    all_results: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = all_results
    reports = tmp_path / "reports"
    assert main(["verify", str(out), "--source", str(source), *LIMITS, "--json", "--report", str(reports)]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert len(results) == 4 and all(result["passed"] for result in results)
    assert {path.suffix for path in reports.iterdir()} == {".json", ".html"}
    assert len(list(reports.iterdir())) == 8


def test_a_report_of_somebody_else_is_left_alone(qwen2: Path, run: Quantize) -> None:
    out = run(qwen2, "--format", "awq", "--rtn")
    for content in ("[]", "no JSON", '{"model": 1}', json.dumps(report_of(out) | {"losses": {"x": "much"}})):
        (out / "quantization_report.json").write_text(content)
        assert main(["verify", str(out), "--source", str(qwen2), *LIMITS]) == 0
        assert (out / "quantization_report.json").read_text() == content


def test_own_texts_are_predicted_instead(qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "own.txt"
    text.write_text("Something else to read. " * 100)
    command = ["verify", str(qwen2), "--source", str(qwen2), "--text", str(text), "--json", *LIMITS]
    assert main(command) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert "own.txt" in result["text"] and result["stops"]["count"] == 0 and result["num_chunks"] == 4
    assert main([*command[:-4], "--chunks", "4000", "--length", "64"]) == 2
    assert "too short for 4000 chunks" in capsys.readouterr().err


def test_other_models_are_refused(qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tiny.write_checkpoint(tmp_path / "other", "qwen2", {"num_hidden_layers": 3})
    assert main(["verify", str(other), "--source", str(qwen2), *LIMITS]) == 2
    assert "num_hidden_layers 3, the source 2" in capsys.readouterr().err


def test_a_limit_that_is_no_number_is_refused(qwen2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(qwen2), "--source", str(qwen2), "--max-kl", "nan"]) == 2
    assert "--max-kl is nan" in capsys.readouterr().err
