"""A model divided over ranks or devices gives the logits of one device, whatever its architecture and format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.layers.head import hold
from qlocal.models.base import ModelConfig
from qlocal.tensor_split import shares
from tests import tiny
from tests.engine.ranks import Ranks, layer_split, one_device, run_greedily, tensor_plan
from tests.formats.gguf_files import write_tiny_gguf
from tests.memory_checkpoint import random_ids
from tests.quantized_folders import write_quantized

PROMPT, ANSWER = random_ids(300, 21), 8
TOLERANCE = 1e-5
UNPADDED = {"intermediate_size": 7 * 32}  # no half of it is whole groups, as of 29,568
WIDE = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 1024}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen2-bf16-tied": ("qwen2", "bf16", {"tie_word_embeddings": True}),
    "qwen2-awq-unpadded": ("qwen2", "awq", UNPADDED),
    "qwen2-awq-group-128": ("qwen2", "awq-128", {**WIDE, "num_key_value_heads": 8}),
    "qwen2-gptq-act-order": ("qwen2", "gptq-act-order", {}),
    "qwen2-q8_0": ("qwen2", "q8_0", UNPADDED),
    "qwen2-q4_k_m": ("qwen2", "q4_k_m", WIDE),
    "llama-bf16": ("llama", "bf16", {}),
    "llama-awq": ("llama", "awq", {}),
    "llama-gptq-act-order": ("llama", "gptq-act-order", {}),
    "llama-gptq": ("llama", "gptq", {"vocab_size": 331}),
    "llama-q4_k_m": ("llama", "q4_k_m", WIDE),
    "llama-q8_0": ("llama", "q8_0", {}),
    "mixtral-bf16": ("mixtral", "bf16", {}),
    "mixtral-awq": ("mixtral", "awq", {}),
    "mixtral-gptq-act-order": ("mixtral", "gptq-act-order", {}),
    "mixtral-q4_k_m": ("mixtral", "q4_k_m", WIDE),
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    started = Ranks(tmp_path_factory.mktemp("ranks"))
    yield started
    started.end()


@pytest.fixture(scope="module", params=MODELS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp(request.param), *MODELS[request.param])


def write(folder: Path, model_type: str, kind: str, overrides: dict[str, Any]) -> Path:
    if kind == "bf16":
        return tiny.write_checkpoint(folder / "m", model_type, overrides)
    if kind.startswith("q"):
        write_tiny_gguf(folder / "m.gguf", model_type, kind, overrides)
        return folder / "m.gguf"
    method, _, rest = kind.partition("-")
    group_size = int(rest) if rest.isdecimal() else 32
    return write_quantized(folder / "m", model_type, method, overrides, group_size, desc_act=rest == "act-order")


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_a_tensor_split_gives_the_logits_and_the_text_of_one_device(ranks: Ranks, path: Path, num_ranks: int) -> None:
    expected, text = run_greedily(one_device(path), PROMPT, ANSWER)
    leading, _ = ranks.load(path, tensor_plan(path, num_ranks))
    logits, found = run_greedily(leading, PROMPT, ANSWER)
    leading.close()
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert found == text


@pytest.mark.parametrize("num_devices", [2, 3])
def test_a_layer_split_gives_the_logits_and_the_text_of_one_device(path: Path, num_devices: int) -> None:
    expected, text = run_greedily(one_device(path), PROMPT, ANSWER)
    logits, found = run_greedily(layer_split(path, num_devices), PROMPT, ANSWER)
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert found == text


def test_uneven_ranks_hold_uneven_parts_and_compute_the_same(ranks: Ranks, tmp_path: Path) -> None:
    path = write(tmp_path, "qwen2", "q4_k_m", {**WIDE, "num_key_value_heads": 8, "intermediate_size": 2048})
    plan = tensor_plan(path, 3)
    uneven = type(plan).from_json({**plan.to_json(), "rank_weights": [4, 3, 1]})
    parts = shares(open_checkpoint(path), uneven.rank_weights)
    assert [len(part.heads) for part in parts] == [4, 3, 1]  # the cuts of o lie inside its blocks of 256
    leading, _ = ranks.load(path, uneven)
    logits, text = run_greedily(leading, PROMPT, ANSWER)
    leading.close()
    expected, expected_text = run_greedily(one_device(path), PROMPT, ANSWER)
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert text == expected_text


def test_a_head_that_ranks_hold_smaller_costs_what_it_costs_whole(ranks: Ranks, tmp_path: Path) -> None:
    path = write(tmp_path, "llama", "bf16", {})
    _, whole = hold(open_checkpoint(path).read("lm_head.weight"), "q8_0")
    leading, _ = ranks.load(path, tensor_plan(path, 2, head="q8_0"))
    held = leading._runner._decoder.held_head
    leading.close()
    assert held is not None and whole is not None
    assert (held.stored_bytes, held.held_bytes) == (whole.stored_bytes, whole.held_bytes)
    assert held.loss == pytest.approx(whole.loss)


@pytest.mark.parametrize(("dtype", "item_bytes"), [("bfloat16", 2), ("float32", 4)])
@pytest.mark.parametrize("model_type", ["qwen2", "mixtral"])
def test_a_token_takes_two_sums_a_layer_and_one_gather(
    ranks: Ranks, tmp_path: Path, model_type: str, dtype: str, item_bytes: int
) -> None:
    path = write(tmp_path, model_type, "awq", {"num_hidden_layers": 3})
    config = open_checkpoint(path).config
    leading, collectives = ranks.load(path, tensor_plan(path, 2, dtype=dtype))
    run_greedily(leading, PROMPT, 1)
    before = vars(collectives.traffic).copy()
    run_greedily(leading, PROMPT, 2)
    two = {name: count - before[name] for name, count in vars(collectives.traffic).items()}
    leading.close()
    token = {name: count - before[name] for name, count in two.items()}
    assert token["all_reduces"] == sums_a_token(config)
    assert token["all_reduce_bytes"] == sums_a_token(config) * sum_bytes(config, item_bytes)
    assert token["gathers"] == 1 and token["gather_bytes"] == 4 * 160  # logits of its half of the vocabulary
    assert token["broadcasts"] == 2  # the step, and which rows of it are sampled


def test_the_72b_exchanges_16_kib_160_times_a_token() -> None:
    values = {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8}
    config = tiny.tiny_config("qwen2", {**values, "intermediate_size": 29_568})
    assert sum_bytes(config, 2) == 16 << 10
    assert sums_a_token(config) == 160


def sums_a_token(config: ModelConfig) -> int:
    return 2 * config.num_hidden_layers


def sum_bytes(config: ModelConfig, item_bytes: int) -> int:
    return config.hidden_size * item_bytes
