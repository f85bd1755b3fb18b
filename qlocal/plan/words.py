"""A plan in lines for people: a table of the devices, and what stands beside it. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from qlocal.plan.layout import shown_bytes
from qlocal.plan.levers import shown_types
from qlocal.plan.places import UNLIMITED_BYTES
from qlocal.plan.plan import DevicePlan, Plan

_COLUMNS = ("device", "layers", "weights", "cache", "scratch", "runtime", "free")


def table(plan: Plan) -> list[str]:
    """Return a line a device under a line of headings; what is free is free once everything is in use."""
    rows = [_COLUMNS, *(_row(part, plan) for part in plan.devices)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    return ["  ".join(_cells(row, widths)).rstrip() for row in rows]


def notes(plan: Plan) -> list[str]:
    """Return what the table does not say, a sentence a line."""
    lines = [
        f"context {plan.max_context:,} tokens, keys and values {shown_types(plan.key_type, plan.value_type)}, "
        f"{plan.num_blocks * plan.block_size:,} tokens of cache for {plan.slots} conversations at once, "
        f"{plan.split} split, head {plan.head}",
        f"the embedding, {shown_bytes(plan.embedding_bytes)}, stays in its file on the host: a token reads one row",
    ]
    if mapped := sum(part.mapped_bytes for part in plan.devices):
        lines.append(f"{shown_bytes(mapped)} of the weights are read from the mapped file, not copied")
    if plan.yarn_factor is not None and plan.yarn_factor > 1.0:
        lines.append(f"YaRN stretches positions by {plan.yarn_factor:.4g}, which this context needs")
    if (draft := plan.draft) is not None:
        held, cache = shown_bytes(draft.weight_bytes + draft.mapped_bytes), shown_bytes(draft.cache_bytes)
        lines.append(f"the draft model {Path(draft.path).name} is on {draft.device}: {held}, with {cache} of cache")
    if plan.host_experts:
        lines.append(f"the experts of {len(plan.host_experts)} layers compute on the CPU, all else on the cards")
    elif offloaded := _host_layers(plan):
        lines.append(f"{offloaded} layers compute on the CPU, for which the cards have no room")
    return lines


def brief(plan: Plan) -> str:
    """Return the plan in a few words, for a status line."""
    totals: dict[str, int] = {}
    for part in plan.devices:
        totals[part.device] = totals.get(part.device, 0) + part.total_bytes
    places = " and ".join(f"{shown_bytes(size)} on {device}" for device, size in totals.items())
    split = f", {plan.split} split" if len(plan.devices) > 1 else ""
    return f"{places} for {plan.max_context:,} tokens{split}"


def contexts(found: dict[str, dict[str, int]]) -> list[str]:
    """Return the largest contexts as a table: a line a split, a column a type of cache."""
    types = list(next(iter(found.values())))
    lines = [f"{'largest context':16}" + "".join(f"{name:>10}" for name in types)]
    for split, sizes in found.items():
        lines.append(f"{split + ' split':16}" + "".join(f"{_tokens(sizes[name]):>10}" for name in types))
    return lines


def _tokens(count: int) -> str:
    return f"{count:,}" if count else "no fit"


def _host_layers(plan: Plan) -> int:
    on_cards = any(part.device != "cpu" for part in plan.devices)
    return sum(len(part.layers) for part in plan.devices if part.device == "cpu") if on_cards else 0


def _row(part: DevicePlan, plan: Plan) -> tuple[str, ...]:
    left = part.free_bytes - part.reserve_bytes - part.total_bytes
    known = part.free_bytes < UNLIMITED_BYTES
    return (
        part.device,
        _shown_layers(part, plan),
        shown_bytes(part.weight_bytes + part.mapped_bytes),
        shown_bytes(part.cache_bytes),
        shown_bytes(part.scratch_bytes),
        shown_bytes(part.reserve_bytes) if known else "",
        shown_bytes(left) if known else "",
    )


def _shown_layers(part: DevicePlan, plan: Plan) -> str:
    if not part.layers:
        return "experts" if plan.host_experts and part.device == "cpu" else "none"
    layers = f"{part.layers[0]}-{part.layers[-1]}"
    return f"{layers}, a part" if plan.split == "tensor" else layers


def _cells(row: Sequence[str], widths: Sequence[int]) -> Iterable[str]:
    for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.ljust(width) if index < 2 else cell.rjust(width)
