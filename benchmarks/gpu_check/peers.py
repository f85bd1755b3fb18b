"""Ours beside others on the same card, in one call: gemlite's int4 products, and a real model beside llama.cpp.

Each is optional, and what is missing is said in its place: gemlite where it is installed; a GGUF file by
QLOCAL_REAL_MODELS, a folder; llama-bench of a CUDA build by QLOCAL_LLAMA_BIN, a folder.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu_check.decoding import weight_bytes
from benchmarks.gpu_check.made_up import GROUP_SIZE, SMALL, decoder, storage
from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.products import made_weights, shapes
from benchmarks.gpu_check.results import Cell, Table
from qlocal.cache.storage import KVStorage
from qlocal.engine.model_runner import ModelRunner
from qlocal.kernels import dispatch
from qlocal.layers.decoder import Decoder
from qlocal.layers.paged_attention import TokenRun

TOKENS = (1, 8, 64, 512)
PROMPT_TOKENS, ANSWER_TOKENS = 512, 64
_BLOCK = 256
_BENCH_S = 240
_MODELS = ("smollm2-135m.gguf", "qwen2.5-coder-0.5b.gguf", "qwen2.5-coder-1.5b.gguf")
Product = Callable[[Tensor], Tensor]


def products(place: Place) -> Table:
    """Time products of one shape after the other, by us and by gemlite, with weights that take turns."""
    rows: list[tuple[Cell, ...]] = []
    for name, (num_rows, columns) in shapes(place).items():
        ours, theirs = made_weights(place, num_rows, columns), _gemlite(place, num_rows, columns)
        packed = ours[0].packed
        assert packed is not None, "int4 weights are packed on a card"
        for tokens in TOKENS if not place.is_rehearsal else (1,):
            x = torch.randn(tokens, columns, device=place.device).bfloat16()
            turn = cycle(ours)
            seconds = place.seconds(lambda x=x, turn=turn: dispatch.quant_matmul(x, next(turn)), repeats=30)
            share = packed.num_bytes / seconds / 1e9 / place.read_gb_per_s
            rows.append((name, tokens, 1e6 * seconds, share, *_beside(place, theirs, x, seconds)))
    columns_ = ("product", "tokens", "us", "share of bandwidth", "gemlite, us", "times as fast as gemlite")
    note = f"Read bandwidth measured in this run: {place.read_gb_per_s:.0f} GB/s. gemlite's weight does not take turns."
    return Table("Products beside gemlite, int4 g128", columns_, rows, (note,))


def models(place: Place) -> Table:
    """Decode real models greedily: the text of the CPU's kernels, tokens a second, and llama.cpp's beside them."""
    rows: list[tuple[Cell, ...]] = []
    failed: list[str] = []
    columns = ("model", "text as plain torch's", "prompt, tokens/s", "decode, tokens/s", "share of bandwidth")
    columns += ("llama.cpp prompt", "llama.cpp decode")
    for name, load in _models(place).items():
        if isinstance(load, str):
            rows.append((name, load, None, None, None, None, None))
            continue
        here, there = (load(kernels) for kernels in ("auto", "reference"))
        count = place.size(ANSWER_TOKENS, 3)
        prompt = [i * 7 % 97 + 3 for i in range(place.size(PROMPT_TOKENS, 20))]
        text, is_close = greedy(*here, prompt, count), True
        expected = greedy(*there, prompt, count)
        same = next((i for i, pair in enumerate(zip(text, expected, strict=True)) if pair[0] != pair[1]), count)
        if same < max(1, count // 8):
            failed.append(f"{name} says something else than plain torch after {same} of {count} tokens")
            is_close = False
        speeds = _speeds(place, *here, prompt, count)
        told = f"{same} of {count} tokens" if is_close else "no"
        rows.append((name, told, *speeds, *_llama_bench(_folder() / name if not place.is_rehearsal else None)))
    notes = (
        "Weights in bfloat16 products fall otherwise at near ties, after which the texts part.",
        f"A prompt of {PROMPT_TOKENS} tokens, {ANSWER_TOKENS} decoded; the share is of the weights' bytes alone.",
    )
    return Table("Real models, end to end", columns, rows, notes, tuple(failed))


def greedy(model: Decoder, cache: KVStorage, prompt: list[int], count: int) -> list[int]:
    """Return the likeliest continuation of a prompt."""
    runner, blocks = ModelRunner(model, cache, _BLOCK), list(range(len(cache.layers[0].keys.memory)))
    runner.forward(prompt, [TokenRun(len(prompt), 0, blocks)])
    found = [int(runner.logits([len(prompt) - 1])[0].argmax())]
    while len(found) < count:
        past = len(prompt) + len(found) - 1
        runner.forward(found[-1:], [TokenRun(1, past, blocks)])
        likeliest = runner.most_likely([0], model.config.vocab_size)
        found.append(int(runner.logits([0])[0].argmax()) if likeliest is None else int(likeliest[0] or 0))
    return found


def _speeds(place: Place, model: Decoder, cache: KVStorage, prompt: list[int], count: int) -> tuple[Cell, ...]:
    """Return tokens a second of a prompt and of decoding, and the share of the bandwidth that weights take."""
    runner, blocks = ModelRunner(model, cache, _BLOCK), list(range(len(cache.layers[0].keys.memory)))

    def step(ids: list[int], past: int) -> None:
        runner.forward(ids, [TokenRun(len(ids), past, blocks)])
        runner.row_sums()

    reading = place.seconds(lambda: step(prompt, 0), repeats=3)
    for _ in range(place.size(3, 1)):
        step([5], len(prompt))  # compiled, recorded, replayed
    decoding = place.seconds(lambda: step([5], len(prompt)), repeats=count)
    share = weight_bytes(model) / decoding / 1e9 / place.read_gb_per_s
    return len(prompt) / reading, 1 / decoding, share


Load = Callable[[str], tuple[Decoder, KVStorage]]


def _models(place: Place) -> dict[str, Load | str]:
    """Return how to load each model, or why not. A rehearsal makes up a small one."""
    if place.is_rehearsal:
        return {"made-up": lambda kernels: _made_up(place, kernels)}
    missing = [name for name in ("msgpack", "platformdirs") if find_spec(name) is None]
    if missing:
        return {name: f"needs {' and '.join(missing)}" for name in _MODELS}
    paths = {name: _folder() / name for name in _MODELS}
    return {name: _loading(place, p) if p.exists() else "not in QLOCAL_REAL_MODELS" for name, p in paths.items()}


def _made_up(place: Place, kernels: str) -> tuple[Decoder, KVStorage]:
    model = decoder(SMALL, place.device, 1, kernels)
    return model, storage(model, 2 * _BLOCK, _BLOCK, ("f16", "f16"))


def _loading(place: Place, path: Path) -> Load:
    # These ask for more packages than the rest of the check.
    from qlocal.formats.checkpoint import open_checkpoint
    from qlocal.layers.kv_conditioning import storage_for
    from qlocal.layers.loader import load_model
    from qlocal.plan import make_plan

    def load(kernels: str) -> tuple[Decoder, KVStorage]:
        checkpoint = open_checkpoint(path)
        plan = make_plan(checkpoint, [str(place.device)], 1024, slots=1, kv="f16", block_size=_BLOCK)
        model = load_model(checkpoint, plan, kernels)
        return model, storage_for(model, plan)

    return load


def _folder() -> Path:
    return Path(os.environ.get("QLOCAL_REAL_MODELS", "/nonexistent"))


def _llama_bench(path: Path | None) -> tuple[Cell, Cell]:
    """Return llama.cpp's tokens a second of a prompt and of decoding, or in their place why not."""
    program = Path(os.environ.get("QLOCAL_LLAMA_BIN", "/nonexistent")) / "llama-bench"
    if path is None or not program.exists():
        return "not rehearsed" if path is None else "QLOCAL_LLAMA_BIN has no llama-bench", None
    command = [str(program), "-m", str(path), "-ngl", "99", "-p", str(PROMPT_TOKENS), "-n", str(ANSWER_TOKENS)]
    try:
        result = subprocess.run([*command, "-o", "json"], capture_output=True, text=True, timeout=_BENCH_S, check=True)
        found = {(run["n_prompt"] > 0): float(run["avg_ts"]) for run in json.loads(result.stdout)}
        return found.get(True), found.get(False)
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        return str(error).splitlines()[0][:60], None


def _gemlite(place: Place, num_rows: int, columns: int) -> Product | str:
    """Return gemlite's product of a shape, or why there is none."""
    if find_spec("gemlite") is None or place.is_rehearsal:
        return "not rehearsed" if place.is_rehearsal else "gemlite is not installed"
    try:
        from gemlite.core import DType, GemLiteLinear

        linear = GemLiteLinear(
            4, group_size=GROUP_SIZE, in_features=columns, out_features=num_rows,
            input_dtype=DType.BF16, output_dtype=DType.BF16, scaled_activations=False,
        )  # fmt: skip
        codes = torch.randint(0, 16, (num_rows, columns), dtype=torch.uint8, device=place.device)
        groups = (num_rows * columns // GROUP_SIZE, 1)
        scales = torch.full(groups, 0.01, dtype=torch.bfloat16, device=place.device)
        linear.pack(codes, scales, torch.full_like(scales, 8.0), None)
        product: Product = linear
        product(torch.zeros(1, columns, dtype=torch.bfloat16, device=place.device))
    except Exception as error:  # another project's, of whatever version: what it cannot do is told
        return f"gemlite: {type(error).__name__}: {error}".splitlines()[0][:60]
    return product


def _beside(place: Place, peer: Product | str, x: Tensor, ours: float) -> tuple[Cell, Cell]:
    if isinstance(peer, str):
        return peer, None
    seconds = place.seconds(lambda: peer(x), repeats=30)
    return 1e6 * seconds, seconds / ours
