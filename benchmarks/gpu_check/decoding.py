"""Tokens a second of the whole 72B geometry, or as many of its layers as fit: decoding, batches, drafts, a prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.gpu_check.made_up import QWEN_72B, SMALL, decoder, storage
from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.results import Cell, Table
from qlocal.cache.storage import KVStorage
from qlocal.engine.model_runner import ModelRunner
from qlocal.layers.adjustment import Adjustment
from qlocal.layers.card_draws import Draws, RowDraw
from qlocal.layers.decoder import Decoder
from qlocal.layers.paged_attention import TokenRun
from qlocal.schema import Sampling

_LAYER_BYTES, _RESERVE_BYTES = 475 << 20, 8 << 30
_BLOCK = 256
_STEPS = 20


@dataclass(frozen=True)
class _Case:
    what: str
    context: int
    sequences: int = 1
    tokens: int = 1
    sampling: Sampling | None = None


def run(place: Place) -> Table:
    """One cache for the longest context; what stands in it are zeros, which take as long to read as anything."""
    num_layers, config = place.size(_num_layers(place), 2), SMALL if place.is_rehearsal else QWEN_72B
    model = decoder(config, place.device, num_layers)
    num_bytes = weight_bytes(model)
    longest = place.size(32768, 300)
    rows: list[tuple[Cell, ...]] = []
    for kinds in (("f16", "f16"), ("q8", "q4")) if not place.is_rehearsal else (("f16", "f16"),):
        cache = storage(model, longest + 4 * _BLOCK, _BLOCK, kinds)
        runner = ModelRunner(model, cache, _BLOCK)
        for case in _cases(place, longest):
            seconds = _seconds_of_step(place, runner, case, config.vocab_size)
            read = num_bytes + case.sequences * case.context * _token_bytes(cache)
            share = read / seconds / 1e9 / place.read_gb_per_s
            per_second = case.sequences * case.tokens / seconds
            rows.append((case.what, ",".join(kinds), case.context, 1e3 * seconds, per_second, share))
    columns = ("step", "cache", "context", "ms", "tokens/s", "share of bandwidth")
    layers = f"{num_layers} of {config.num_hidden_layers} layers"
    note = f"{layers}, int4 g128, head Q8_0: {num_bytes / 1e9:.1f} GB of weights."
    return Table("Decoding, made-up weights", columns, rows, (note,))


def _cases(place: Place, longest: int) -> list[_Case]:
    if place.is_rehearsal:
        return [
            _Case("one token", 40),
            _Case("drawn", 40, sampling=Sampling(top_k=20, presence_penalty=0.1)),
            _Case("prompt", 0, tokens=20),
        ]
    contexts = [_Case("one token", context) for context in (16, 8192, longest)]
    drawn = Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.1)
    few = [_Case("one token, drawn", 16, sampling=drawn), _Case("8 drawn", 512, sequences=8, sampling=drawn)]
    few += [_Case("8 sequences", 512, sequences=8), _Case("draft of 5", 8192, tokens=5)]
    return [*contexts, *few, _Case("prompt of 2,048", 0, tokens=2048)]


def _seconds_of_step(place: Place, runner: ModelRunner, case: _Case, vocab: int) -> float:
    blocks = -(-(case.context + case.tokens) // _BLOCK)
    # Sequences share blocks: what they write there is of no consequence.
    runs = [TokenRun(case.tokens, case.context, list(range(blocks))) for _ in range(case.sequences)]
    ids = [i % 100 for i in range(case.sequences * case.tokens)]

    draws = None
    if case.sampling is not None:
        rows = [RowDraw(Adjustment(case.sampling, vocab, [1, 2]), 0.5) for _ in range(case.sequences)]
        draws = Draws(vocab, rows)

    def step() -> None:
        runner.forward(ids, runs, draws=draws)
        runner.row_sums()  # the copy to the host that ends a step

    for _ in range(3):
        step()  # compiled, recorded, replayed
    return place.seconds(step, repeats=_STEPS if case.tokens <= 8 else 3)


def _num_layers(place: Place) -> int:
    if place.is_rehearsal:
        return 2
    free, _ = torch.cuda.mem_get_info(place.device)
    return max(1, min(QWEN_72B.num_hidden_layers, (free - _RESERVE_BYTES) // _LAYER_BYTES))


def weight_bytes(model: Decoder) -> int:
    linears = [model.head]
    for layer in model.layers:
        linears += [layer.qkv, layer.o, layer.ffn.gate_up, layer.ffn.down]  # type: ignore[union-attr]
    packed = [part.weight.packed for linear in linears for part in linear.parts()]
    return sum(weight.num_bytes for weight in packed if weight is not None)


def _token_bytes(cache: KVStorage) -> int:
    """Return the bytes of one token in all layers."""
    blocks = sum(side.memory[0].nbytes for layer in cache.layers for side in (layer.keys, layer.values))
    return blocks // _BLOCK
