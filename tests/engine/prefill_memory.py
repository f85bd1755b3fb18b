"""Run in a fresh process by test_prefill_memory.py: reads a prompt in chunks and prints the peaks of memory.

The cache is written once before, since untouched pages cost nothing; what is counted is anonymous memory beside it.
"""

from __future__ import annotations

import json
import sys

import torch

from qlocal.engine.model_runner import ModelRunner
from qlocal.ggml_types import GgmlType
from qlocal.kernels import dispatch, native
from qlocal.kernels.quantize_blocks import Fit, quantize_blocks
from qlocal.layers.kv_conditioning import storage_for
from qlocal.layers.loader import load_model
from qlocal.layers.paged_attention import TokenRun
from qlocal.plan import make_plan
from qlocal.weights import BlockWeight
from tests.memory_checkpoint import MemoryCheckpoint
from tests.plan.measure import Watch, settled

CHUNK, SHORT, LONG = 512, 2048, 32768
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "max_position_embeddings": LONG,
}


def runner_of(kv: str) -> tuple[ModelRunner, list[int]]:
    """Return a model with quantized layers, which the native step reads prompts with, and the blocks of its cache."""
    library = native.load()
    assert isinstance(library, native.Library), "the test looks for the library first"
    checkpoint = MemoryCheckpoint("qwen2", SIZES)
    plan = make_plan(checkpoint, ["cpu"], LONG, slots=1, kv=kv)
    for spec in checkpoint.architecture.tensors(checkpoint.config):
        if spec.is_quantized:
            values = checkpoint.values[spec.name]
            blocks, _ = quantize_blocks(library, values.float(), GgmlType.Q8_0, Fit.PLAIN)
            checkpoint.weights[spec.name] = BlockWeight(blocks, GgmlType.Q8_0, values.shape[1])
    decoder = load_model(checkpoint, plan)
    storage = storage_for(decoder, plan)
    for part in storage.block_parts(slice(None)):  # type: ignore[arg-type]
        part.fill_(0)
    return ModelRunner(decoder, storage, plan.block_size), list(range(plan.num_blocks))


@torch.inference_mode()
def main(kv: str) -> None:
    dispatch.set_threads(2)
    runner, blocks = runner_of(kv)
    peaks, before = {}, settled()
    done = 0
    for length in (SHORT, LONG):
        with Watch() as watch:
            while done < length:
                runner.forward([7 * i % 300 for i in range(done, done + CHUNK)], [TokenRun(CHUNK, done, blocks)])
                done += CHUNK
        peaks[length] = watch.peak - before
    print(json.dumps(peaks))


if __name__ == "__main__":
    main(sys.argv[1])
