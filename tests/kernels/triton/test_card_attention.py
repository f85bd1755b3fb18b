"""Rotary, cache writes and attention of the card's kernels against the readable attention."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from qlocal.cache import packed
from qlocal.layers.paged_attention import TokenRun
from tests.kernels.triton.attending import BLOCK, Case, make_case, products, slots_of
from tests.kernels.triton.weights import relative_error

LONG, SHORT = [3, 1, 7, 4, 9], [2, 11, 5]
"""Block tables of two sequences, in no order."""
TYPES = [("f16", "f16"), ("q8", "q8"), ("q4", "q4"), ("q8", "q4"), ("f16", "q4")]
HEADS = {"7:1": (14, 2, 64), "8:1": (8, 1, 128), "4:1": (8, 2, 32)}


def pieces_of(interpreted: SimpleNamespace, runs: Sequence[TokenRun]) -> Any:
    extents, tables, rows, first = [], [], [], 0
    for number, run in enumerate(runs):
        extents.append([first, run.length, run.num_past])
        tables.append(run.blocks + [0] * (len(LONG) - len(run.blocks)))
        rows += [number] * run.length
        first += run.length
    as_int = [torch.tensor(values, dtype=torch.int32) for values in (extents, tables, rows)]
    return interpreted.attention.Pieces(*as_int, max(run.length for run in runs))


def card_step(
    interpreted: SimpleNamespace, case: Case, qkv: Tensor, runs: Sequence[TokenRun], splits: int | None = None
) -> Tensor:
    """Do by the kernels what `Case.step` does."""
    heads = interpreted.rotary_store.Heads(*case.heads, BLOCK)
    angles = case.angles(runs)
    cos_sin = angles.cos.squeeze(1).contiguous(), angles.sin.squeeze(1).contiguous()
    parts = torch.stack([qkv / 4, qkv * 3 / 4])
    queries = interpreted.rotary_store.rotary_store(parts, case.bias, cos_sin, slots_of(runs), case.cache, heads)
    key_angles = None
    if queries.bias is not None:
        key_angles = interpreted.key_angles.key_angles(case.rotary, 10 * BLOCK, BLOCK, torch.device("cpu"))
    return interpreted.attention.attend(
        queries, case.cache, pieces_of(interpreted, runs), key_angles, heads, torch.float32, splits
    )


def with_a_past(heads: str, types: tuple[str, str], bias: float = 0.0) -> tuple[Case, Case]:
    """Return two equal cases whose cache holds 101 tokens of one sequence and 40 of another."""
    plain, card = (make_case(HEADS[heads], types, bias) for _ in range(2))
    plain.step(products(plain, 141), [TokenRun(101, 0, LONG), TokenRun(40, 0, SHORT)])
    for mine, theirs in zip(card.memory, plain.memory, strict=True):
        mine.copy_(theirs)
    return plain, card


@pytest.mark.parametrize("types", TYPES, ids=",".join)
@pytest.mark.parametrize("heads", HEADS)
def test_a_step_attends_and_stores_as_the_readable_one(
    interpreted: SimpleNamespace, heads: str, types: tuple[str, str]
) -> None:
    plain, card = with_a_past(heads, types)
    runs = [TokenRun(1, 101, LONG), TokenRun(3, 40, SHORT)]
    qkv = products(plain, 4, seed=1)
    expected = plain.step(qkv, runs)
    assert relative_error(card_step(interpreted, card, qkv, runs), expected) < 2e-3
    read = [case.layer.read(torch.tensor(LONG), 102) for case in (plain, card)]
    for mine, theirs in zip(*read, strict=True):
        # A value between two codes may fall to either side.
        assert relative_error(theirs, mine) < 5e-3


@pytest.mark.parametrize("types", [("f16", "f16"), ("q8", "q4"), ("q4", "q8")], ids=",".join)
def test_a_large_key_bias_costs_nothing(interpreted: SimpleNamespace, types: tuple[str, str]) -> None:
    plain, card = with_a_past("7:1", types, bias=300.0)
    runs = [TokenRun(2, 101, LONG), TokenRun(1, 40, SHORT)]
    qkv = products(plain, 3, seed=2)
    assert relative_error(card_step(interpreted, card, qkv, runs), plain.step(qkv, runs)) < 5e-3


@pytest.mark.parametrize("splits", [1, 2, 8])
def test_splits_and_pieces_change_nothing(interpreted: SimpleNamespace, splits: int) -> None:
    plain, card = with_a_past("4:1", ("f16", "f16"))
    runs = [TokenRun(8, 101, LONG)]
    qkv = products(plain, 8, seed=3)
    assert relative_error(card_step(interpreted, card, qkv, runs, splits), plain.step(qkv, runs)) < 1e-3


def test_the_first_token_sees_itself_alone(interpreted: SimpleNamespace) -> None:
    plain, card = (make_case(HEADS["8:1"], ("f16", "f16")) for _ in range(2))
    runs, qkv = [TokenRun(1, 0, SHORT)], products(plain, 1)
    assert relative_error(card_step(interpreted, card, qkv, runs), plain.step(qkv, runs)) < 1e-3


def test_broken_numbers_behind_a_sequence_are_not_seen(interpreted: SimpleNamespace) -> None:
    """A block that is used again still holds what was there before."""
    plain, card = with_a_past("4:1", ("f16", "f16"))
    for side in (card.layer.keys, card.layer.values):
        tail = side.dense[LONG[3]]
        places = (
            (slice(None), slice(None), slice(None), slice(8, None)) if side.tile > 1 else (slice(None), slice(8, None))
        )
        tail[places] = float("nan")
    runs, qkv = [TokenRun(1, 101, LONG)], products(plain, 1, seed=4)
    assert relative_error(card_step(interpreted, card, qkv, runs), plain.step(qkv, runs)) < 1e-3


@pytest.mark.parametrize("kind", ["q8", "q4"])
def test_heads_are_rounded_as_the_reference_rounds_them(interpreted: SimpleNamespace, kind: str) -> None:
    plain, card = (make_case(HEADS["8:1"], (kind, kind)) for _ in range(2))
    runs, qkv = [TokenRun(5, 0, SHORT)], products(plain, 5, seed=5)
    qkv[0] = 0.0
    plain.step(qkv, runs)
    card_step(interpreted, card, qkv, runs)
    for mine, theirs in zip(card.memory, plain.memory, strict=True):
        assert (mine != theirs).float().mean() < 1e-3


def test_the_levels_are_those_of_the_cache(interpreted: SimpleNamespace) -> None:
    encode = interpreted.kv_encode
    assert (encode.BEND.value, encode._LARGEST_RANGE.value) == (packed.BEND, packed._LARGEST_RANGE)
    assert encode._NUM_RANGES.value == packed._NUM_RANGES


def test_keys_angles_are_those_of_their_positions(interpreted: SimpleNamespace) -> None:
    rotary = make_case(HEADS["8:1"], ("q8", "q8")).rotary
    angles = interpreted.key_angles.key_angles(rotary, 4 * BLOCK, BLOCK, torch.device("cpu"))
    lanes = angles.of_lanes.float().sum(0)  # (Dh, N)
    cos, sin = angles.of_tiles[2, :64, None], angles.of_tiles[2, 64:, None]
    expected = rotary.at(torch.arange(2 * BLOCK, 3 * BLOCK)).cos.squeeze(1).T
    torch.testing.assert_close(cos * lanes[:64] - sin * lanes[64:], expected, rtol=0, atol=1e-6)
