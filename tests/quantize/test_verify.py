import json
from pathlib import Path

import pytest
import torch

from qlocal.formats.checkpoint import open_checkpoint
from quantize.cli import main
from quantize.verify import StreamedDecoder
from tests import tiny
from tests.quantize.conftest import Quantize, logits

LIMITS = ["--chunks", "4", "--length", "64"]


def test_source_verifies_against_itself(qwen2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(qwen2), str(qwen2), *LIMITS, "--max-kl", "0", "--min-top1", "1"]) == 0
    assert "passed" in capsys.readouterr().out


def test_gate_fails_with_code_three(qwen2: Path, run: Quantize, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(qwen2, "--format", "awq", "--rtn")
    assert main(["verify", str(qwen2), str(out), *LIMITS, "--max-kl", "1e-6", "--json"]) == 3
    result = json.loads(capsys.readouterr().out.split("\n", 2)[2])
    assert result["passed"] is False
    assert "is above 1e-06" in result["failures"][0]
    assert main(["verify", str(qwen2), str(out), *LIMITS, "--max-kl", "0.5"]) == 0


def test_other_models_are_refused(qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tiny.write_checkpoint(tmp_path / "other", "qwen2", {"num_hidden_layers": 3})
    assert main(["verify", str(qwen2), str(other), *LIMITS]) == 2
    assert "num_hidden_layers 3, the source 2" in capsys.readouterr().err


def test_streamed_layers_give_the_model_s_own_logits(tiny_checkpoint: Path) -> None:
    checkpoint, chunk = open_checkpoint(tiny_checkpoint), list(range(10, 40))
    streamed = StreamedDecoder(checkpoint, [chunk], "cpu", "float32")
    states = streamed.forward(torch.tensor(chunk[:-1]), torch.arange(29), lambda _: None)  # type: ignore[arg-type,return-value]
    torch.testing.assert_close(
        streamed.logits(states), logits(checkpoint, torch.tensor(chunk[:-1])), rtol=1e-3, atol=1e-3
    )
