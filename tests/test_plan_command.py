"""`qlocal plan` on the command line: tables for people, JSON for programs, sentences for mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlocal.cli import main
from qlocal.plan import places
from tests import tiny

GIB = 1 << 30
MORE_CARDS_THAN_HEADS = ",".join(["2GiB"] * 15)
TWO_CARDS = ("--gpus", "23.6GiB,23.6GiB")
LARGE = "qwen2.5-72b-instruct"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without models or settings."""
    monkeypatch.setenv("QLOCAL_HOME", str(tmp_path / "models"))
    monkeypatch.setenv("QLOCAL_CONFIG", str(tmp_path / "config"))
    monkeypatch.delenv("QLOCAL_DEVICES", raising=False)
    return tmp_path


def planned(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert main(["plan", *arguments, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_model_of_the_catalogue_is_planned_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, LARGE, *TWO_CARDS)
    assert found["format"] == "awq" and (found["native_context"], found["context_limit"]) == (32768, 131072)
    contexts = found["largest_context"]
    assert set(contexts) == {"layer", "tensor"}
    assert 0 < contexts["layer"]["f16"] < contexts["layer"]["q8"] < contexts["layer"]["q4"] <= 131072
    assert found["options"]["--head q8_0"] > contexts["layer"]["f16"]
    assert {part["device"] for part in found["plan"]["devices"]} == {"cuda:0", "cuda:1"}


def test_the_table_names_devices_and_levers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", LARGE, *TWO_CARDS]) == 0
    text = capsys.readouterr().out
    for words in (
        "computed from its geometry, FFN padded from 29568 to 29696",
        "device  layers",
        "cuda:1",
        "largest context",
        "made for 32,768 tokens; more, up to 131,072, with YaRN",
        "each option alone",
        "--quantize-head",
        "the embedding, 2.32 GiB, stays in its file",
    ):
        assert words in text


def test_131072_tokens_of_the_72b_are_in_reach_of_two_cards(capsys: pytest.CaptureFixture[str]) -> None:
    levers = ("--quantize-head", "--split", "tensor", "--kv", "q4", "--slots", "1", "--chunk", "128")
    assert planned(capsys, LARGE, *TWO_CARDS, *levers)["plan"]["max_context"] > 127_000
    found = planned(capsys, LARGE, *TWO_CARDS, *levers, "--context", "131072", "--reserve", "350MiB")
    assert found["plan"]["max_context"] == 131072 and found["plan"]["split"] == "tensor"
    for part in found["plan"]["devices"]:
        used = part["weight_bytes"] + part["cache_bytes"] + part["scratch_bytes"] + part["reserve_bytes"]
        assert used <= int(23.6 * GIB)


@pytest.mark.parametrize(
    ("arguments", "context"),
    [
        (("llama-3.1-70b-instruct", *TWO_CARDS, "--type", "awq"), 16_000),
        (("qwen2-72b-instruct", *TWO_CARDS, "--type", "gptq"), 16_000),
        (("qwen2.5-32b-instruct", "--gpus", "23.6GiB"), 16_000),
        (("mixtral-8x22b-instruct-v0.1", *TWO_CARDS, "--type", "awq", "--offload", "experts"), 65_536),
    ],
)
def test_the_other_large_models_have_their_contexts(
    arguments: tuple[str, ...], context: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert planned(capsys, *arguments)["plan"]["max_context"] >= context


def test_experts_of_the_8x22b_take_the_memory_of_the_host(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("mixtral-8x22b-instruct-v0.1", *TWO_CARDS, "--type", "awq", "--offload", "experts")
    found = planned(capsys, *arguments, "--ram", "96GiB")
    host = found["plan"]["devices"][-1]
    assert host["device"] == "cpu" and host["layers"] == [] and host["weight_bytes"] > 20 * GIB
    assert len(found["plan"]["host_experts"]) > 10
    refused = planned(capsys, *arguments, "--ram", "8GiB", code=2)
    assert not refused["fits"] and refused["plan"] is None and "needs" in refused["error"]["message"]


def test_what_cannot_be_cut_is_split_by_layers(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "qwen2.5-0.5b-instruct", "--gpus", MORE_CARDS_THAN_HEADS)
    assert set(found["largest_context"]) == {"layer"} and found["plan"]["split"] == "layer"


def test_what_does_not_fit_is_shown_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", LARGE, "--gpus", "23.6GiB", "--offload", "none"]) == 2
    shown = capsys.readouterr()
    assert "no fit" in shown.out and "what would make it fit" in shown.out
    assert "needs" in shown.err and "on cuda:0" in shown.err and "It fits with --offload layers" in shown.err


def test_a_context_that_is_too_large_is_answered_with_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", LARGE, *TWO_CARDS, "--context", "60000"]) == 2
    said = capsys.readouterr().err
    assert "The largest context that fits is" in said and "; --kv q8,q4 makes 60000 fit" in said


def test_a_checkpoint_on_disk_is_planned_by_its_headers(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.write_checkpoint(folder / "tiny")
    monkeypatch.setattr(places, "free_bytes", lambda device: 4 * GIB)
    monkeypatch.setattr(places, "taken_bytes", lambda device: 0)
    found = planned(capsys, str(path))
    assert [part["device"] for part in found["plan"]["devices"]] == ["cpu"] and found["format"] == "bf16"
    unequal = planned(capsys, str(path), "--devices", "cuda:0,cuda:2")
    assert [part["device"] for part in unequal["plan"]["devices"]] == ["cuda:0", "cuda:2"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing-like-that",), "there is no model 'nothing-like-that'"),
        (("nothing-like-that", "--type", "awq"), "--type describes models of the catalogue"),
        ((LARGE, "--gpus", "24GiB", "--devices", "cpu"), "exclude each other"),
        ((LARGE, "--ram", "24GiB"), "--ram belongs to --gpus"),
        ((LARGE, "--gpus", "lots"), "'lots' is no size"),
        ((LARGE, *TWO_CARDS, "--kv", "q3"), "'q3' is none of f16, q8, q4"),
        ((LARGE, *TWO_CARDS, "--context", "200000"), "the model was made for 131072"),
        ((LARGE, *TWO_CARDS, "--offload", "experts"), "has no experts"),
        (
            ("qwen2.5-0.5b-instruct", "--gpus", MORE_CARDS_THAN_HEADS, "--split", "tensor"),
            "7 query heads of a KV head cannot be divided among 8",
        ),
    ],
)
def test_mistakes_are_one_sentence(arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
