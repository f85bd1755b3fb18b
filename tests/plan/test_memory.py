"""The plan held against memory that was really allocated: tracked tensors of tiny models, a process for larger."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qlocal.cache.storage import KVStorage
from qlocal.layers.decoder import Decoder
from qlocal.layers.loader import load_model
from qlocal.plan import Plan, make_plan
from qlocal.plan.demand import types_of_layer
from tests import tiny
from tests.memory_checkpoint import MemoryCheckpoint
from tests.plan.folders import write_awq
from tests.real_models import real_model

MID_SIZED = {
    "hidden_size": 1024,
    "intermediate_size": 5632,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}


def storages(*roots: object) -> Iterator[torch.UntypedStorage]:
    """Every tensor's memory that can be reached from `roots`, once."""
    seen: set[int] = set()
    todo: list[Any] = [*roots]
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            if storage.data_ptr() and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                yield storage
        elif isinstance(item, dict):
            todo += item.values()
        elif isinstance(item, (list, tuple)):
            todo += item
        elif type(item).__module__.startswith("qlocal"):
            todo += getattr(item, "__dict__", {}).values()


def loaded(checkpoint: MemoryCheckpoint, plan: Plan) -> Decoder:
    return load_model(checkpoint, plan)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("model_type", ["qwen2", "llama", "mixtral"])
def test_tensors_of_a_tiny_model_take_what_was_planned(model_type: str, dtype: str) -> None:
    checkpoint = MemoryCheckpoint(model_type, {"tie_word_embeddings": True})
    plan = make_plan(checkpoint, ["cpu"], dtype=dtype)
    decoder = loaded(checkpoint, plan)
    rotary, decoder.rotary = decoder.rotary, None  # type: ignore[assignment]  # a kilobyte of angles is no weight
    in_files = {storage.data_ptr() for storage in storages(checkpoint.weights)}
    held = {storage.data_ptr(): storage.nbytes() for storage in storages(decoder)}
    (part,) = plan.devices
    assert rotary is not None
    assert sum(size for at, size in held.items() if at not in in_files) == part.weight_bytes
    assert sum(size for at, size in held.items() if at in in_files) == part.mapped_bytes


@pytest.mark.parametrize("head_dim", [16, 32, 80])
@pytest.mark.parametrize(("slots", "kv"), [(1, "f16"), (3, "f16"), (3, "q8"), (1, "q8,q4"), (3, "q4")])
def test_a_tiny_cache_takes_what_was_planned(slots: int, kv: str, head_dim: int) -> None:
    checkpoint = MemoryCheckpoint("llama", {"hidden_size": 4 * head_dim})
    assert checkpoint.config.head_dim == head_dim
    plan = make_plan(checkpoint, ["cpu"], slots=slots, kv=kv)
    config = checkpoint.config
    sizes = (plan.num_blocks, plan.block_size, config.num_key_value_heads, config.head_dim)
    storage = KVStorage(["cpu"] * 2, *sizes, [types_of_layer(i, plan.key_type, plan.value_type) for i in range(2)])
    assert sum(s.nbytes() for s in storages(storage)) == plan.devices[0].cache_bytes


def test_a_process_holds_what_was_planned(tmp_path: Path) -> None:
    assert_held([f"{write_awq(tmp_path / 'awq', MID_SIZED)}:bfloat16"])


@pytest.mark.slow
def test_a_process_holds_what_was_planned_of_dense_weights_and_in_float32(tmp_path: Path) -> None:
    dense = tiny.write_checkpoint(tmp_path / "dense", "llama", MID_SIZED)
    codes = write_awq(tmp_path / "awq", MID_SIZED)
    assert_held([f"{dense}:bfloat16", f"{codes}:float32", f"{dense}:float32"])


@pytest.mark.real
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"])
def test_a_process_holds_what_was_planned_of_real_files(name: str) -> None:
    assert_held([f"{real_model(f'{name}.gguf')}:bfloat16"])


def assert_held(runs: list[str]) -> None:
    """Compare what a fresh process holds of every `path:dtype` with its plan."""
    command = [sys.executable, "-m", "tests.plan.measure", runs[0].rpartition(":")[0], *runs]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    for run, found in zip(runs, json.loads(result.stdout.splitlines()[-1]), strict=True):
        planned = found["weight_bytes"] + found["cache_bytes"]
        assert found["held"] == pytest.approx(planned, rel=0.03), run
        assert found["step"] <= found["scratch_bytes"], run
