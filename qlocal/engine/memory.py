"""Memory that runs out although it was planned: somebody else took it meanwhile. Said once, with the numbers."""

from __future__ import annotations

from qlocal.errors import PlanError
from qlocal.plan import Plan
from qlocal.plan.layout import shown_bytes
from qlocal.plan.request import MIN_CONTEXT


def no_memory_for(name: str, plan: Plan) -> PlanError:
    """Return what is told where memory runs out while a model is loaded as planned."""
    planned = " and ".join(
        f"{shown_bytes(part.total_bytes)} of {shown_bytes(part.free_bytes)} that were free on {part.device}"
        for part in plan.devices
    )
    return PlanError(
        f"memory ran out while {name} was loaded, although it was planned with {planned}",
        hint=f"End what took memory meanwhile, or load with less: --context {max(MIN_CONTEXT, plan.max_context // 2)}.",
    )
