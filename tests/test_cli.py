from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import quantize.cli
from qlocal import cli
from qlocal.cli import COMMANDS, main
from qlocal.errors import UsageError
from tests import tiny


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLOCAL_HOME", str(tmp_path / "models"))
    monkeypatch.setenv("QLOCAL_CONFIG", str(tmp_path / "config"))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope"], "invalid choice: 'nope'"),
        (["--nope"], "--nope"),
        (["run"], "required: MODEL"),
        (["run", "m", "p", "--temperature", "3"], "3 is out of range, expected a number from 0 to 2"),
        (["run", "m", "p", "--top-p", "0"], "0 is out of range"),
        (["run", "m", "p", "--max-tokens", "0"], "'0' is no whole number above 0"),
        (["run", "m", "p", "--seed", "-1"], "'-1' is no whole number"),
        (["run", "m", "p", "--devices", "tpu"], "'tpu' is no device"),
        (["run", "m", "p", "--max-memory", "lots"], "'lots' is no size"),
        (["run", "m", ""], "the prompt is empty"),
        (["run", "m", "p"], "there is no model 'm'"),
        (["serve", "--port", "70000"], "'70000' is no port"),
        (["serve", "--port", "1", "--socket", "x"], "exclude each other"),
        (["serve", "--port", "0", "--host", "0.0.0.0"], "only the loopback is served"),
        (["eval", "m"], "required: --text"),
        (["eval", "m", "--text", "/no/file"], "there is no file '/no/file'"),
        (["bench", "--columns", "100"], "100 is no multiple of 256"),
        (["bench", "--tokens", "1,x"], "'x' is no whole number"),
        (["bench", "--storages", "q9"], "'q9' is unknown"),
        (["models", "show"], "takes the NAME"),
        (["models", "show", "qwen"], "'qwen' is not in the catalogue"),
        (["models", "list", "x"], "takes no NAME"),
        (["models", "rm", "../x"], "is not in"),
        (["pull", "nothing"], "'nothing' is not in the catalogue"),
        (["completion", "fish"], "invalid choice: 'fish'"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and words in shown.err
    assert shown.err.startswith("qlocal: ") and shown.err.count("\n") == 1


def test_foreign_text_in_an_error_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", "\x1b]0;title\x07"]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory"), RuntimeError("you can't allocate memory")],
    ids=lambda error: type(error).__name__,
)
def test_without_memory_it_is_one_line_and_exit_code_2(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: list[str]) -> int:
        raise error

    for program, name in ((cli, "_run"), (quantize.cli, "_quantize")):
        monkeypatch.setattr(program, name, fail)
        assert program.main(["models"]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "there is no memory left for this. End what takes it" in told


def test_other_defects_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: list[str]) -> int:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        cli.main(["models"])


def test_interruption_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("qlocal.commands.models.run", interrupted)
    assert main(["models"]) == 130
    assert capsys.readouterr().err == ""


def test_version_and_help_name_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--version"], ["--help"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "qlocal 0.1.0" in shown and all(f"    {name}" in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    assert f"usage: qlocal {name}" in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS) and "--temperature" in script


def test_options_may_stand_between_model_and_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def refuse(model: str, options: object, announce: object) -> None:
        seen.append((model, options))
        raise UsageError("enough was seen")

    monkeypatch.setattr("qlocal.launch.ensure_server", refuse)
    for arguments in (["m", "--seed", "1", "p"], ["--seed", "1", "m", "p"], ["m", "p", "--seed", "1"]):
        assert main(["run", *arguments]) == 2
    assert [model for model, _ in seen] == ["m"] * 3


def test_models_lists_shows_and_removes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_checkpoint(folder / "models" / "mine")

    def output(*arguments: str) -> Any:
        assert main(["models", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert "mine" in output("list")["installed"] and "qwen2.5-72b-instruct" in output("list")["catalogue"]
    assert output("show", "qwen2.5-72b-instruct")["sizes"]["awq"] == 41_595_518_976
    disk = output("disk")
    assert disk["models"]["mine"] == disk["total"] == output("rm", "mine")["freed"] > 0
    assert output("list")["installed"] == {}


def test_model_table_reads_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", "mixtral-8x7b-instruct-v0.1"]) == 0
    shown = capsys.readouterr().out
    assert "2 of 8 experts" in shown and "28,447,727,616" in shown
    assert main(["models"]) == 0
    assert "qwen2.5-72b-instruct" in capsys.readouterr().out


def test_doctor_says_what_there_is_and_where_settings_come_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QLOCAL_THREADS", "3")
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["values"]["threads"] == {"value": 3, "source": "environment"}
    assert found["settings"]["values"]["max_context"]["source"] == "default"
    assert sum(kernel["chosen"] for kernel in found["kernels"]) == 1 and all(k["reason"] for k in found["kernels"])
    assert found["versions"]["torch"] and found["memory"]["total"] > found["memory"]["available"] > 0
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "threads        3  (environment)" in text and "kernels" in text


def test_doctor_shows_a_broken_setting_beside_everything_else(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "config").mkdir()
    (folder / "config" / "config.toml").write_text("threads = 0")
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "threads is 0" in found["settings"]["error"] and found["cpu"]["usable_threads"] >= 1


def test_eval_measures_perplexity_and_distance(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.write_checkpoint(folder / "models" / "tiny")
    text = folder / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    arguments = ["eval", "tiny", "--reference", str(model), "--text", str(text), "--chunks", "2", "--length", "32"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ppl"] > 1 and abs(found["mean_kl"]) < 1e-6
    assert main(arguments) == 0
    assert "ppl" in capsys.readouterr().out


def test_closed_standard_output_is_no_traceback() -> None:
    command = f"{sys.executable} -m qlocal.cli models | true; exit ${{PIPESTATUS[0]}}"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=dict(os.environ))
    assert "Traceback" not in found.stderr and found.returncode in (0, cli.BROKEN_PIPE)


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"bench", "eval"}))
def test_commands_open_without_torch(name: str) -> None:
    code = f"import sys, qlocal.cli, qlocal.commands.{name}; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
