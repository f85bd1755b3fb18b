"""Do the kernels compute on this card what the reference computes? Every kind of weight, and every cache."""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from benchmarks.gpu_check.made_up import SMALL, MadeUp, decoder, storage
from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.results import Cell, Table
from qlocal.ggml_types import GgmlType
from qlocal.kernels import dispatch, reference
from qlocal.kernels.reference.int8_tokens import rounded_tokens
from qlocal.layers.adjustment import Adjustment
from qlocal.layers.card_decoder import card_decoder
from qlocal.layers.card_draws import DrawInputs, Draws, RowDraw, TokenTable, draw, draw_sizes
from qlocal.layers.paged_attention import PagedAttention, TokenRun
from qlocal.schema import Sampling

BLOCK_TYPES = (GgmlType.Q4_0, GgmlType.Q8_0, GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K)
CACHES = (("f16", "f16"), ("q8", "q8"), ("q8", "q4"), ("q4", "q4"))
WITHIN = 6e-3
"""Weights are rounded to bfloat16 for many tokens, and Triton's interpreter rounds towards zero."""
_WITHIN_OF_STEPS = {"f16": 3e-2, "q8": 3e-2, "q4": 6e-2}
"""By the type of the keys: a number between two codes may fall to either side, and codes of 4 bits are far apart."""
_BLOCK = 64
DRAWN = {
    "unfiltered": Sampling(temperature=0.8, seed=1),
    "top-p": Sampling(temperature=0.7, top_p=0.9, min_p=0.01, seed=2),
    "top-k, penalties": Sampling(temperature=1.0, top_k=40, repetition_penalty=1.1, frequency_penalty=0.3, seed=3),
}


def run(place: Place) -> Table:
    rows = [*_products(place), *_steps(place), *_draws(place)]
    failed = tuple(f"{what} of {tokens} tokens is {error:.1e} off" for what, tokens, error, ok in rows if not ok)
    return Table("Values, against plain torch", ("what", "tokens", "relative error", "is right"), rows, (), failed)


def _products(place: Place) -> list[tuple[Cell, ...]]:
    source = MadeUp.of(place.device)
    rows, columns = place.size(1024, 40), place.size(4096, 256)
    weights = [("int4 g128", source.affine(rows, columns)), ("bf16", source.dense(rows, columns))]
    weights += [(kind.name, source.blocks(kind, rows, columns)) for kind in BLOCK_TYPES]
    found: list[tuple[Cell, ...]] = []
    for name, weight in weights:
        truth = reference.dequantize(weight)
        prepared = dispatch.prepare(weight, place.device, torch.bfloat16)
        for tokens in (1, 5, 16, 33):
            x = torch.randn(tokens, columns, generator=source.generator, device=place.device).bfloat16()
            found.append(_row(name, tokens, dispatch.quant_matmul(x, prepared), x.float() @ truth.T, WITHIN))
        if prepared.packed is not None and prepared.packed.can_be_int8:
            rounded = rounded_tokens(x, prepared.packed.group_size)
            result = dispatch.quant_matmul(x, replace(prepared, is_int8=True))
            found.append(_row(f"{name}, int8", tokens, result, rounded @ truth.T, WITHIN))
    return found


def _steps(place: Place) -> list[tuple[Cell, ...]]:
    """Run a prompt, a token and a draft through whole layers."""
    plain, fast = (decoder(SMALL, place.device, 1, kernels) for kernels in ("reference", "auto"))
    found: list[tuple[Cell, ...]] = []
    for kinds in CACHES[:: place.size(1, 3)]:
        caches = [storage(model, 4 * _BLOCK, _BLOCK, kinds) for model in (plain, fast)]
        quick = card_decoder(fast, caches[1], _BLOCK)
        assert quick is not None, "the layers are on a card"
        past = 0
        # Three steps of one token: as it is, recorded and replayed, replayed.
        for tokens in (20, 1, 1, 1, 5):
            ids, runs = torch.arange(past, past + tokens), [TokenRun(tokens, past, [2, 0, 1, 3])]
            attention = PagedAttention(runs, caches[0], _BLOCK)
            expected = plain.forward(ids, attention.positions, attention.of_layer)
            result = quick.forward(ids, attention.positions, runs)
            found.append(_row(f"layer, cache {','.join(kinds)}", tokens, result, expected, _WITHIN_OF_STEPS[kinds[0]]))
            past += tokens
    return found


def _draws(place: Place) -> list[tuple[Cell, ...]]:
    """Draw with the same numbers on the card and on the host, whose draws are the sampler's by a test; the share of
    other tokens stands for an error. A number may fall between sums that are added in another order, which a few
    hundred draws hardly ever see."""
    vocab, steps = place.size(152064, 1500), place.size(200, 10)
    found: list[tuple[Cell, ...]] = []
    for what, wanted in DRAWN.items():
        adjustment, uniforms, others = Adjustment(wanted, vocab, [1, 2, 3]), random.Random(0), 0
        tables = [TokenTable(vocab, device) for device in (place.device, torch.device("cpu"))]
        for step in range(steps):
            logits = 3 * torch.randn(1, vocab, generator=torch.Generator().manual_seed(step))
            draws = Draws(vocab, [RowDraw(adjustment, uniforms.random())])
            there, here = (_token(logits, draws, table) for table in tables)
            others += there != here
            adjustment.note(max(here, 0))
        found.append((f"draws, {what}", steps, others / steps, others <= steps // 100))
    return found


def _token(logits: torch.Tensor, draws: Draws, table: TokenTable) -> int:
    sizes = draw_sizes(1)
    host = DrawInputs(torch.empty(sizes["settings"]), torch.empty(sizes["numbers"], dtype=torch.int32))
    host.write(draws, table)
    inputs = DrawInputs(host.settings.to(table.device), host.numbers.to(table.device))
    return int(draw(logits.to(table.device), inputs, draws.drawing, table))


def _row(what: str, tokens: int, found: torch.Tensor, expected: torch.Tensor, within: float) -> tuple[Cell, ...]:
    error = float((found.float() - expected).norm() / expected.norm())
    return what, tokens, error, error < within
