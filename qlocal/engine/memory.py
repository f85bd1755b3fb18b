"""Memory that runs out although it was planned: somebody else took it meanwhile. Said once, with the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qlocal.errors import PlanError, is_out_of_memory
from qlocal.plan import Plan
from qlocal.plan.layout import shown_bytes
from qlocal.plan.request import MIN_CONTEXT


@contextmanager
def out_of_memory_in_words(name: str, plan: Plan) -> Iterator[None]:
    """Turn whatever torch and the system raise without memory into a PlanError about `plan`."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise _sentence(name, plan) from error


def _sentence(name: str, plan: Plan) -> PlanError:
    planned = " and ".join(
        f"{shown_bytes(part.total_bytes)} of {shown_bytes(part.free_bytes)} that were free on {part.device}"
        for part in plan.devices
    )
    return PlanError(
        f"memory ran out while {name} was loaded, although it was planned with {planned}",
        hint=f"End what took memory meanwhile, or load with less: --context {max(MIN_CONTEXT, plan.max_context // 2)}.",
    )
