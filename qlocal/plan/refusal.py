"""The sentence that says why something does not fit: what is needed, what there is, and what would make it fit."""

from __future__ import annotations

from dataclasses import replace

from qlocal.errors import PlanError
from qlocal.plan import levers
from qlocal.plan.layout import shown_bytes
from qlocal.plan.placement import Placement, Placer
from qlocal.plan.request import MIN_CONTEXT, Request

_WORTH_SAYING = 1 << 30
"""Bytes of other programs on the cards that a refusal mentions: they could be ended."""


def refusal(placer: Placer) -> PlanError:
    """Say what is needed, what there is, and what would make it fit."""
    request = placer.request
    least = min(MIN_CONTEXT, request.limit)
    context = max(request.max_context or least, least)
    wanted = replace(request, max_context=context)
    message = _shortage(placer.evenly(context), placer.blocks_of(context), request, context)
    return PlanError(message, hint=levers.hint(wanted))


def _shortage(placed: Placement, num_blocks: int, request: Request, context: int) -> str:
    """Return the numbers of the places together, or of the fullest one where together they would do."""
    shares, demand = list(placed.shares), request.demand
    if sum(s.num_bytes(demand, num_blocks) for s in shares) <= sum(s.place.room for s in shares):
        shares = [max(shares, key=lambda s: s.num_bytes(demand, num_blocks) / s.place.room)]
    weights = sum(s.weights.total for s in shares)
    cache, scratch = sum(s.cache_bytes(demand, num_blocks) for s in shares), sum(s.scratch_bytes for s in shares)
    devices = " and ".join(dict.fromkeys(s.place.device for s in shares))
    taken = sum(s.place.taken_bytes for s in shares)
    others = f", other programs hold {shown_bytes(taken)}" if taken >= _WORTH_SAYING else ""
    which = "that --max-memory allows" if any(s.place.is_limited for s in shares) else "that are free"
    return (
        f"{request.checkpoint.path.name} with {context} tokens of context needs "
        f"{shown_bytes(weights + cache + scratch)} on {devices} ({shown_bytes(weights)} weights, "
        f"{shown_bytes(cache)} cache, {shown_bytes(scratch)} scratch), "
        f"{shown_bytes(sum(s.place.room for s in shares))} can be used of "
        f"{shown_bytes(sum(s.place.free_bytes for s in shares))} {which}{others}"
    )
