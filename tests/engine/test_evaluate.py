"""`qlocal eval` and `qlocal bench MODEL` without their command lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlocal.engine import bench, evaluate
from qlocal.engine.evaluate import Measured
from qlocal.engine.loading import load_engine
from qlocal.errors import ConfigError, UsageError
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.kernels import native
from qlocal.protocol import Load
from tests import tiny
from tests.memory_checkpoint import MemoryCheckpoint

needs_native = pytest.mark.skipif(isinstance(native.load(), native.Absent), reason="needs the native kernels")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("eval")


@pytest.fixture(scope="module")
def text(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text("".join(tiny.TEXT) * 20, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return tiny.write_checkpoint(folder / "model")


def test_a_model_is_measured_against_its_reference(folder: Path, model: Path, text: Path) -> None:
    other = tiny.write_checkpoint(folder / "other", seed=1)
    result = evaluate.run(other, Measured([text], num_chunks=3, length=24), model)
    same = evaluate.run(model, Measured([text], num_chunks=3, length=24), model)
    assert (result["model"], result["reference"], result["num_chunks"]) == ("other", "model", 3)
    assert result["mean_kl"] > 0.1 > same["mean_kl"]
    assert same["top1"] == 1.0
    assert result["ppl_source"] == pytest.approx(same["ppl"])
    assert result["bytes"] == sum(t.num_bytes for t in open_checkpoint(other).tensors.values())


def test_what_the_cache_loses_is_measured_by_its_types(folder: Path, text: Path) -> None:
    model = tiny.write_checkpoint(folder / "deep", "qwen2", {"num_hidden_layers": 4})

    def loss(kv: str) -> float:
        result = evaluate.run(model, Measured([text], num_chunks=2, length=24, kv=kv), model)
        assert ",".join(dict.fromkeys((result["key_type"], result["value_type"]))) == kv
        return float(result["mean_kl"])

    assert loss("f16") < loss("q8") < loss("q8,q4") < 0.1


@needs_native
def test_a_head_held_in_fewer_bits_is_measured_with_what_it_saves(model: Path, text: Path) -> None:
    result = evaluate.run(model, Measured([text], num_chunks=2, length=24, head="q8_0"), model)
    assert result["head"] == "q8_0" and 0 < result["head_loss"] < 1e-4
    assert result["head_saved_bytes"] == 320 * 128 * 2 - 320 * 4 * 34
    assert 0 < result["mean_kl"] < 1e-3  # the reference's head is as stored
    assert evaluate.run(model, Measured([text], num_chunks=2, length=24))["head"] == "stored"


@needs_native
def test_the_engine_says_what_it_did_to_the_head(model: Path) -> None:
    engine = load_engine(Load(str(model), ["cpu"], max_context=64, head="q8_0"), lambda _: None)
    assert engine.ready.plan["head"] == "q8_0" and engine.ready.held_head is not None
    assert engine.ready.held_head.sentence.startswith("the head is held as q8_0: 0.0 MB instead of 0.1 MB")


def test_what_cannot_be_measured_is_said(folder: Path, model: Path, text: Path) -> None:
    with pytest.raises(UsageError, match="too short for 4000 chunks"):
        evaluate.run(model, Measured([text], num_chunks=4000))
    with pytest.raises(UsageError, match="predict nothing"):
        evaluate.run(model, Measured([text], length=1))
    with pytest.raises(UsageError, match=r"missing\.txt cannot be read"):
        evaluate.run(model, Measured([folder / "missing.txt"]))
    larger = tiny.write_checkpoint(folder / "larger", overrides={"vocab_size": 330})
    with pytest.raises(ConfigError, match="larger has a vocabulary of 330 tokens, model one of 320"):
        evaluate.run(larger, Measured([text], num_chunks=2, length=16), model)


def test_the_benchmark_measures_prompt_and_decoding(model: Path) -> None:
    result = bench.run(Load(str(model), ["cpu"], threads=1), bench.Lengths(40, 6, repeats=2))
    assert result["prompt_tokens_per_s"] > 0
    assert result["decode_spread"][0] <= result["decode_tokens_per_s"] <= result["decode_spread"][1]
    assert result["decode_share"] > 0


def test_a_token_reads_layers_head_and_routed_experts(folder: Path, model: Path) -> None:
    dense = open_checkpoint(model)
    table = dense.tensors["model.embed_tokens.weight"].num_bytes
    assert bench.bytes_per_token(dense) == sum(t.num_bytes for t in dense.tensors.values()) - table
    mixture = open_checkpoint(tiny.write_checkpoint(folder / "mixture", "mixtral"))
    experts = sum(t.num_bytes for t in mixture.tensors.values() if t.spec.expert is not None)
    everything = sum(t.num_bytes for t in mixture.tensors.values())
    assert bench.bytes_per_token(mixture) == everything - table - experts / 2


def test_a_prompts_token_is_multiplied_by_its_linears_and_routed_experts_alone() -> None:
    dense, mixture = MemoryCheckpoint("llama"), MemoryCheckpoint("mixtral")
    attention, expert = 128 * (128 + 64 + 64) + 128 * 128, 3 * 128 * 256
    assert bench.operations_per_token(dense) == 2 * 2 * (attention + expert)
    assert bench.operations_per_token(mixture) == 2 * 2 * (attention + 2 * expert)
