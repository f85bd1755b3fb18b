"""The memory plan: which layer goes to which device, and how many bytes everything takes. No torch.

Computed from headers alone; the loader executes this very plan. `make_plan` is the way in.
"""

from __future__ import annotations

from qlocal.plan.demand import head_of
from qlocal.plan.make import make_plan, plan_for, plan_load
from qlocal.plan.plan import DevicePlan, Plan
from qlocal.plan.request import Request

__all__ = ["DevicePlan", "Plan", "Request", "head_of", "make_plan", "plan_for", "plan_load"]
