"""The plan in lines: every device with its bytes, and what stands beside the table."""

from __future__ import annotations

from dataclasses import replace

from qlocal.plan import DevicePlan, Plan, words
from qlocal.plan.places import UNLIMITED_BYTES

MIB, GIB = 1 << 20, 1 << 30
CARD = DevicePlan("cuda:0", (2, 3), 3 * GIB, 0, GIB, 128 * MIB, 512 * MIB, 8 * GIB)
HOST = DevicePlan("cpu", (0, 1), GIB, 2 * GIB, 256 * MIB, 64 * MIB, 0, UNLIMITED_BYTES)
PLAN = Plan((CARD, HOST), "cpu", "cuda:0", 4096, 2, 32, 256, "bfloat16", "q8", "q4", embedding_bytes=600 * MIB)


def test_the_table_has_a_line_a_device_and_says_what_stays_free() -> None:
    heading, card, host = words.table(PLAN)
    assert heading.split() == ["device", "layers", "weights", "cache", "scratch", "runtime", "free"]
    assert card.split()[:2] == ["cuda:0", "2-3"] and card.endswith("3.38 GiB")
    assert host.split() == ["cpu", "0-1", "3.00", "GiB", "256", "MiB", "64", "MiB"], "nobody told what the host has"


def test_notes_say_what_the_table_does_not() -> None:
    text = "\n".join(words.notes(PLAN))
    assert "context 4,096 tokens, keys and values q8,q4" in text
    assert "8,192 tokens of cache for 2 conversations" in text
    assert "the embedding, 600 MiB, stays in its file" in text
    assert "2.00 GiB of the weights are read from the mapped file" in text
    assert "2 layers compute on the CPU" in text


def test_experts_on_the_host_are_told_apart_from_layers() -> None:
    plan = replace(PLAN, devices=(CARD, replace(HOST, layers=())), host_experts=(2, 3))
    assert words.table(plan)[2].split()[1] == "experts"
    assert "the experts of 2 layers compute on the CPU" in "\n".join(words.notes(plan))


def test_ranks_hold_a_part_of_their_layers() -> None:
    plan = replace(PLAN, devices=(CARD, replace(CARD, device="cuda:1")), split="tensor")
    assert [line.split()[1:4] for line in words.table(plan)[1:]] == [["2-3,", "a", "part"]] * 2


def test_a_status_line_has_the_bytes_of_every_device() -> None:
    assert words.brief(PLAN) == "4.12 GiB on cuda:0 and 3.31 GiB on cpu for 4,096 tokens, layer split"


def test_contexts_are_a_line_a_split_and_a_column_a_type() -> None:
    lines = words.contexts({"layer": {"f16": 1024, "q4": 0}, "tensor": {"f16": 2048, "q4": 131072}})
    assert [line.split() for line in lines] == [
        ["largest", "context", "f16", "q4"],
        ["layer", "split", "1,024", "no", "fit"],
        ["tensor", "split", "2,048", "131,072"],
    ]
