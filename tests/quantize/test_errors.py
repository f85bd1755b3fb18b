"""Whatever a file, a disk or a user does wrong ends in one sentence, exit code 2, and nothing half-written in place."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlocal.formats.preallocated_file import PreallocatedFile
from quantize.cli import main


def rewrite(source: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})


def truncate(source: Path) -> None:
    data = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(data[:-100])


def put_nan(source: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.self_attn.k_proj.weight"][3, 5] = float("nan")

    rewrite(source, change)


def drop_tensor(source: Path) -> None:
    rewrite(source, lambda tensors: tensors.__delitem__("model.layers.0.mlp.up_proj.weight"))


def misshape(source: Path) -> None:
    rewrite(source, lambda tensors: tensors.update({"model.norm.weight": torch.ones(64, dtype=torch.bfloat16)}))


def set_config(source: Path, **values: object) -> None:
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(raw | values))


def be_unknown(source: Path) -> None:
    set_config(source, model_type="bloom")


def be_quantized(source: Path) -> None:
    set_config(source, quantization_config={"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True})


def be_adapter(source: Path) -> None:
    (source / "adapter_config.json").write_text("{}")


def lose_tokenizer(source: Path) -> None:
    (source / "tokenizer.json").unlink()


def overflow(source: Path) -> None:
    rewrite(source, lambda t: t.update({"model.norm.weight": torch.full((128,), 1e6, dtype=torch.bfloat16)}))


DAMAGES = {
    truncate: "model.safetensors",
    put_nan: "model.safetensors: tensor 'model.layers.1.self_attn.k_proj.weight' holds 1 values that are not finite",
    drop_tensor: "model.layers.0.mlp.up_proj.weight is missing",
    misshape: "model.norm.weight has shape (64,)",
    be_unknown: "'bloom' is not supported",
    be_quantized: "qweight",
    be_adapter: "LoRA",
    lose_tokenizer: "tokenizer.json",
    overflow: "model.norm.weight",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_damaged_source_ends_in_one_sentence(
    damage: Callable[[Path], None], qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(qwen2)
    out = tmp_path / "out"
    code = main([str(qwen2), "--format", "awq", "--out", str(out), "--samples", "2", "--seq-len", "64"])
    errors = capsys.readouterr().err
    assert code == 2
    if damage is not be_quantized:
        assert DAMAGES[damage] in errors
    assert "Traceback" not in errors
    assert errors.strip().splitlines()[-1].startswith("quantize: ")
    assert not out.exists()


ARGUMENTS = [
    (["--format", "exl2"], "--format 'exl2' is unknown"),
    (["--format", "awq,awq"], "each may stand there once"),
    (["--format", "gguf", "--type", "q9_k"], "--type 'q9_k' is unknown"),
    (["--format", "gguf"], "one GGUF result is a file"),
    (["--format", "awq", "--group-size", "100"], "--group-size is 100"),
    (["--format", "awq", "--desc-act"], "--desc-act belongs to --format gptq"),
    (["--format", "awq", "--samples", "0"], "--samples is 0"),
    (["--format", "awq", "--pad-ffn", "100"], "--pad-ffn 100 is smaller than the FFN"),
    (["--format", "awq", "--pad-ffn", "much"], "--pad-ffn is 'much'"),
    (["--format", "awq", "--raw"], "--raw takes windows of your files"),
    (["--format", "awq", "--shard-size", "big"], "--shard-size is 'big'"),
    (["--format", "awq", "--max-memory", "10MB"], "--max-memory is 0.0 GB"),
    (["--format", "awq", "--calibration", "absent.txt"], "absent.txt: cannot be read"),
    (["--format", "awq", "--device", "tpu"], "--device is 'tpu'"),
    (["--format", "awq", "--device", "cuda:9"], "--device cuda:9"),
    (["--format", "awq", "--nonsense"], "unrecognized arguments"),
    (["--format", "awq", "--sym", "--asym"], "not allowed with"),
]


@pytest.mark.parametrize(("arguments", "text"), ARGUMENTS, ids=lambda a: "-".join(a) if isinstance(a, list) else "")
def test_wrong_arguments_end_in_one_sentence(
    arguments: list[str], text: str, qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([str(qwen2), "--out", str(tmp_path / "out"), *arguments])
    errors = capsys.readouterr().err
    assert code == 2
    assert text in errors
    assert len(errors.strip().splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "no text"), (b"caf\xe9 au lait", "not UTF-8 at byte 3"), (b"too short", "at least 16 are needed")],
)
def test_unreadable_calibration_is_named(
    content: bytes, text: str, qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.txt").write_bytes(content)
    calibration = ["--calibration", str(tmp_path / "own.txt")]
    assert main([str(qwen2), "--format", "awq", "--out", str(tmp_path / "out"), *calibration]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("line", ["{", '{"messages": []}', '{"messages": [{"role": "user"}]}', "[]"])
def test_broken_conversation_names_file_and_line(
    line: str, qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.jsonl").write_text('{"messages": [{"role": "user", "content": "Hello"}]}\n' + line)
    calibration = ["--calibration", str(tmp_path / "own.jsonl")]
    assert main([str(qwen2), "--format", "awq", "--out", str(tmp_path / "out"), *calibration]) == 2
    assert "own.jsonl: line 2" in capsys.readouterr().err


def test_full_disk_is_noticed_before_work_begins(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    assert main([str(qwen2), "--format", "awq", "--rtn", "--out", str(tmp_path / "out")]) == 2
    assert "are free on that disk" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_disk_that_fills_up_ends_in_one_sentence_and_continues(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(qwen2), "--format", "awq", "--rtn", "--out", str(tmp_path / "out")]
    calls = [0]
    original = PreallocatedFile.write

    def write(file: PreallocatedFile, offset: int, data: bytes) -> None:
        calls[0] += 1
        if calls[0] > 20:
            raise file._failure(OSError(errno.ENOSPC, "No space left on device"))
        original(file, offset, data)

    with monkeypatch.context() as patch:
        patch.setattr(PreallocatedFile, "write", write)
        assert main(arguments) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(arguments) == 0


def test_gguf_source_is_refused_by_name(qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(qwen2), "--format", "gguf", "--rtn", "--out", str(tmp_path / "m.gguf")]) == 0
    assert main([str(tmp_path / "m.gguf"), "--format", "awq", "--out", str(tmp_path / "out")]) == 2
    assert "m.gguf: is a GGUF checkpoint, which is quantized already" in capsys.readouterr().err
