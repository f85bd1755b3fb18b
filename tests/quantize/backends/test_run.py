"""`quantize --backend`: what the peer is asked, what becomes of its result, and of its failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qlocal.formats.checkpoint import open_checkpoint
from quantize.calibration.windows import windows_of
from quantize.cli import main
from quantize.options import Calibration
from quantize.report.files import read_report
from quantize.state import locked
from tests import tiny
from tests.quantize.backends.fake_peer import FakePeer
from tests.quantize.damage import double_scales

SIZE = ["--samples", "4", "--seq-len", "64", "--group-size", "64"]


def command(source: Path, out: Path, peer: FakePeer, *arguments: str) -> list[str]:
    """Return the arguments of a run with GPTQModel, unless `arguments` say otherwise."""
    backend = ["--backend", "gptqmodel", "--backend-python", str(peer.python)]
    return [str(source), "--out", str(out), *SIZE, *backend, *arguments]


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds: float = 300.0) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_peer_gets_our_windows_and_arguments_and_its_results_go_through_the_gate(
    qwen2: Path, tmp_path: Path, peer: FakePeer, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(command(qwen2, out, peer, "--format", "awq,gptq", "--desc-act", "--asym")) == 0
    assert "GPTQModel 7.7.0 (transformers 5.20.0) makes gptq" in capsys.readouterr().err
    windows = windows_of(open_checkpoint(qwen2), Calibration(num_samples=4, seq_len=64)).ids.tolist()
    for name, layout in (("awq", "gemm"), ("gptq", "gptq_v2")):
        seen = peer.seen(name)
        assert seen["windows"] == windows and seen["masks"] == [[1] * 64] * 4
        assert seen["source"] == str(qwen2) and seen["offline"] == "1"
        assert seen["load"] == {"device": None, "trust_remote_code": False}
        assert seen["config"].pop("offload_to_disk_path") == "offloaded"  # relative: it ends up in config.json
        asked = {"bits": 4, "method": name, "format": layout, "group_size": 64, "sym": False}
        assert seen["config"] == asked | {"desc_act": name == "gptq"}

        report = read_report(out / name)
        assert report is not None and report["verify"]["passed"] and report["seconds"] > 0
        versions = {"gptqmodel": "7.7.0", "transformers": "5.20.0"}
        assert report["backend"] == {"name": "gptqmodel", "versions": versions}
        assert report["method"].startswith(f"GPTQModel's own {name.upper()}; 4 bit, asymmetric, groups of 64")
        assert set(report["source_sha256"]) == {path.name for path in open_checkpoint(qwen2).files}
        assert (out / name / "tokenizer.json").read_bytes() == (qwen2 / "tokenizer.json").read_bytes()
        assert not (out / name / "chat_template.jinja").exists()
        assert "Quantized with GPTQModel 7.7.0" in (out / name / "README.md").read_text()
    assert not out.with_name("out.partial").exists()


def test_autoawq_takes_the_same_windows_one_at_a_time(qwen2: Path, tmp_path: Path, peer: FakePeer) -> None:
    assert main(command(qwen2, tmp_path / "out", peer, "--format", "awq", "--backend", "autoawq")) == 0
    seen = peer.seen("autoawq")
    windows = windows_of(open_checkpoint(qwen2), Calibration(num_samples=4, seq_len=64)).ids.tolist()
    assert seen["calib_data"] == windows
    assert (seen["max_calib_samples"], seen["max_calib_seq_len"], seen["n_parallel_calib_samples"]) == (4, 64, 1)
    assert seen["quant_config"] == {"w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "gemm"}
    report = read_report(tmp_path / "out")
    assert report is not None and report["tool"] == "AutoAWQ 0.2.9 (transformers 5.20.0)"


def test_a_peers_bad_result_fails_the_gate(
    qwen2: Path, tmp_path: Path, peer: FakePeer, capsys: pytest.CaptureFixture[str]
) -> None:
    double_scales(peer.result("gptq"), layer=1)
    assert main(command(qwen2, tmp_path / "out", peer, "--format", "gptq")) == 3
    assert "out fails the gate" in capsys.readouterr().err
    assert (tmp_path / "out" / "config.json").exists()


FAILURES = {
    "raise": ("failed with exit code 1: ", "RuntimeError: no such layer"),
    "die": ("was killed by signal 9, as happens without enough memory: ", "20 %\\x1b[31m"),
    "forget": ("ended without a result", ""),
}


@pytest.mark.parametrize("act", FAILURES)
def test_a_peer_that_fails_is_quoted_and_its_log_kept(
    act: str, qwen2: Path, tmp_path: Path, peer: FakePeer, capsys: pytest.CaptureFixture[str]
) -> None:
    peer.act(act)
    out = tmp_path / "out"
    assert main(command(qwen2, out, peer, "--format", "gptq")) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    log = tmp_path / "out.partial" / "work" / "gptqmodel-gptq.log"
    for text in (*FAILURES[act], f"Its output lies in {log}"):
        assert text in said
    assert "loading" in log.read_text() and not out.exists()
    assert list((tmp_path / "out.partial").rglob("*.safetensors")) == []
    peer.act("well")
    assert main(command(qwen2, out, peer, "--format", "gptq")) == 0
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_peer_ends_with_us(how: signal.Signals, qwen2: Path, tmp_path: Path, peer: FakePeer) -> None:
    peer.act("hang")
    arguments = command(qwen2, tmp_path / "out", peer, "--format", "gptq", "--no-verify")
    # Whoever runs the tests in the background ignores Ctrl-C, and so would what is started here.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    program = [sys.executable, "-m", "quantize.cli", *arguments]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as ours:
        signal.signal(signal.SIGINT, before)
        try:
            wait_for(lambda: peer.pid_file.exists() and peer.pid_file.read_text())
            pid = int(peer.pid_file.read_text())
            ours.send_signal(how)
            _, said = ours.communicate(timeout=300)
            wait_for(lambda: not alive(pid))
        finally:
            ours.kill()
    if how is signal.SIGINT:
        assert ours.returncode == 130 and "the same command begins anew" in said
        assert not (tmp_path / "out.partial").exists()
    peer.act("well")
    assert main(command(qwen2, tmp_path / "out", peer, "--format", "gptq", "--no-verify")) == 0
    assert not (tmp_path / "out.partial").exists()


def test_what_our_own_quantizer_has_left_unfinished_is_not_lost(
    qwen2: Path, tmp_path: Path, peer: FakePeer, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "out.partial" / "work" / "journal.json"
    journal.parent.mkdir(parents=True)
    journal.write_text("{}")
    assert main(command(qwen2, tmp_path / "out", peer, "--format", "gptq")) == 2
    assert "holds an unfinished run of qlocal's own quantizer" in capsys.readouterr().err
    assert journal.exists()


def test_a_taken_place_and_a_shared_work_folder_are_refused(
    qwen2: Path, tmp_path: Path, peer: FakePeer, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(qwen2, tmp_path / "out", peer, "--format", "gptq", "--no-verify")
    with locked(tmp_path / "out.partial" / "work"):
        assert main(arguments) == 2
    assert "another quantize is at work there" in capsys.readouterr().err
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0


def test_a_width_that_we_would_pad_is_said_or_refused(
    tmp_path: Path, peer: FakePeer, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow = tiny.write_checkpoint(tmp_path / "narrow", "qwen2", {"intermediate_size": 320})
    peer.act("raise")
    assert main(command(narrow, tmp_path / "out", peer, "--format", "gptq")) == 2
    said = capsys.readouterr().err
    assert "The FFN keeps its 320 columns: GPTQModel does not pad, where qlocal goes to 512." in said
    odd = tiny.write_checkpoint(tmp_path / "odd", "qwen2", {"intermediate_size": 264})
    assert main(command(odd, tmp_path / "out2", peer, "--format", "gptq")) == 2
    assert "GPTQModel does not pad; leave out --backend" in capsys.readouterr().err


def test_a_device_is_the_only_one_that_the_peer_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    from quantize.backends.interpreter import environment

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    seen = [environment(device)["CUDA_VISIBLE_DEVICES"] for device in ("auto", "cpu", "cuda:1", "cuda")]
    assert seen == ["4,6", "", "6", "4"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert environment("cuda:1")["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.delenv("GPTQMODEL_CPU_WORKERS", raising=False)
    assert environment("cpu")["GPTQMODEL_CPU_WORKERS"] == "2"
