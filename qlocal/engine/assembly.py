"""How the ranks of a tensor split come together: rank 0 plans and starts those of its machine; other machines' first
ranks bring their devices, take over the plan and start their own.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from qlocal.config import Nodes
from qlocal.devices import compute_on, default_threads, free_bytes, local_name, numa_cpus, on_node
from qlocal.engine.team import Team
from qlocal.errors import EngineError, PlanError
from qlocal.formats.base import Checkpoint
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.layers.precision import compute_dtype
from qlocal.layers.seat import Seat
from qlocal.parallel.collectives import Collectives
from qlocal.parallel.host_exchange import open_exchange
from qlocal.parallel.rendezvous import WAIT_S, Meeting, Store, join
from qlocal.plan import Plan, plan_load
from qlocal.protocol import Join, Load, Progress
from qlocal.tensor_split import check_devices, shares

Result = TypeVar("Result")
POLL_S = 0.05
REFUSAL_WAIT_S = 5.0
OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Assembled:
    """A plan and, of a tensor split, this rank's seat and the ranks that it has started. threads: of this rank."""

    plan: Plan
    threads: int
    kernels: str
    seat: Seat | None = None
    team: Team | None = None


def lead(load: Load, checkpoint: Checkpoint, on_progress: OnProgress) -> Assembled:
    """Plan what `load` asks for on rank 0, and bring the other ranks together where the plan has any.

    Raises PlanError for what does not fit, EngineError when a rank does not come.
    """
    threads = load.threads or default_threads()
    if load.nodes is not None:
        return _lead_nodes(load, load.nodes, checkpoint, on_progress)
    plan = plan_load(checkpoint, load)
    if plan.split == "layer":
        return Assembled(plan, threads, load.kernels)
    folder = TemporaryDirectory(prefix="qlocal-ranks-")  # for this user alone
    meeting = Meeting(path=str(Path(folder.name) / "store"))
    store = meeting.open(hosts=True)
    return _assemble(load, plan, checkpoint, meeting, store, range(len(plan.devices)), folder)


def follow_node(load: Load, nodes: Nodes, checkpoint: Checkpoint) -> Assembled:
    """Bring this machine's devices to node 0, take over its plan, and start the ranks of this machine.

    Raises EngineError with node 0's reason when it refuses, or when it is not there.
    """
    meeting = _meeting(nodes)
    store = meeting.open(hosts=False)
    offer = {"devices": load.devices, "free": _free(load), "model": _fingerprint(checkpoint)}
    store.set(f"node/{nodes.rank}", json.dumps(offer))
    try:
        store.wait(["orders"], timedelta(seconds=WAIT_S))
        orders = json.loads(store.get("orders"))
        store.set(f"heard/{nodes.rank}", "yes")
    except RuntimeError as error:
        raise EngineError(f"node 0 at {nodes.host}:{nodes.port} gave no orders, or went away") from error
    if orders["refusal"] is not None:
        raise EngineError(f"node 0 refuses: {orders['refusal']}")
    plan, first = Plan.from_json(orders["plan"]), orders["first_ranks"][nodes.rank]
    load = replace(load, kernels=orders["kernels"])
    return _assemble(load, plan, checkpoint, meeting, store, range(first, first + len(load.devices)), None)


def follow(order: Join) -> tuple[Checkpoint, Assembled]:
    """Become the rank that `order` names."""
    _settle(order.cpus)
    checkpoint, plan = open_checkpoint(Path(order.path)), Plan.from_json(order.plan)
    meeting = Meeting(order.meeting_path, order.host, order.port, order.prefix)
    store = meeting.open(hosts=False)
    seat = _take_seat(meeting, store, order.rank, plan, checkpoint)
    return checkpoint, Assembled(plan, order.threads, order.kernels, seat)


def _lead_nodes(load: Load, nodes: Nodes, checkpoint: Checkpoint, on_progress: OnProgress) -> Assembled:
    meeting = _meeting(nodes)
    store = meeting.open(hosts=not nodes.has_store)
    try:
        offers = _await_offers(store, nodes, checkpoint, on_progress)
        devices, free, first_ranks = list(load.devices), dict[str, int](), [0]
        for node, offer in enumerate(offers, 1):
            first_ranks.append(len(devices))
            devices += [on_node(device, node) for device in offer["devices"]]
            free |= {on_node(device, node): num_bytes for device, num_bytes in offer["free"].items()}
        check_devices(devices)
        plan = plan_load(checkpoint, load, devices, free)
    except (EngineError, PlanError) as error:
        _refuse(store, nodes, str(error))
        raise
    orders = {"refusal": None, "plan": plan.to_json(), "kernels": load.kernels, "first_ranks": first_ranks}
    store.set("orders", json.dumps(orders))
    return _assemble(load, plan, checkpoint, meeting, store, range(len(load.devices)), None)


def _refuse(store: Store, nodes: Nodes, reason: str) -> None:
    """Tell the nodes that are there why not, and keep the store until they have heard it."""
    store.set("orders", json.dumps({"refusal": reason}))
    there = [node for node in range(1, nodes.count) if store.check([f"node/{node}"])]
    with suppress(RuntimeError):  # one that is gone by now needs no reason
        store.wait([f"heard/{node}" for node in there], timedelta(seconds=REFUSAL_WAIT_S))


def _await_offers(store: Store, nodes: Nodes, checkpoint: Checkpoint, on_progress: OnProgress) -> list[dict[str, Any]]:
    keys = [f"node/{node}" for node in range(1, nodes.count)]
    deadline, here = time.monotonic() + WAIT_S, -1
    while (found := sum(store.check([key]) for key in keys)) < len(keys):
        if found != here:
            here = found
            on_progress(Progress(f"waiting for other nodes at {nodes.host}:{nodes.port}", found + 1, nodes.count))
        if time.monotonic() > deadline:
            raise EngineError(f"{found + 1} of {nodes.count} nodes are there after {WAIT_S:g} s")
        time.sleep(POLL_S)
    offers = [json.loads(store.get(key)) for key in keys]
    for node, offer in enumerate(offers, 1):
        if offer["model"] != _fingerprint(checkpoint):
            raise EngineError(f"node {node} has another model than {checkpoint.path.name}")
    return offers


def _assemble(
    load: Load,
    plan: Plan,
    checkpoint: Checkpoint,
    meeting: Meeting,
    store: Store,
    ranks: range,
    folder: TemporaryDirectory[str] | None,
) -> Assembled:
    """Start the ranks of this machine but its first, and become that."""
    devices = {rank: local_name(plan.devices[rank].device) for rank in ranks}
    threads = max(1, (load.threads or default_threads()) // len(ranks))
    cpus = _cpus_of(devices)
    order = Join(load.path, ranks[0], plan.to_json(), load.kernels, threads, **_address(meeting))
    team = Team([(replace(order, rank=rank, cpus=cpus.get(rank)), devices[rank]) for rank in ranks[1:]], folder)
    try:
        _settle(cpus.get(ranks[0]))
        seat = _take_seat(meeting, store, ranks[0], plan, checkpoint, team)
    except BaseException:
        team.end()
        raise
    return Assembled(plan, threads, load.kernels, seat, team)


def _cpus_of(devices: Mapping[int, str]) -> dict[int, list[int]]:
    """Return the logical CPUs of every rank that computes on a NUMA node of its own, or shares it with its like."""
    on_cpu = [rank for rank, device in devices.items() if device == "cpu"]
    return dict(zip(on_cpu, numa_cpus(len(on_cpu)) or [], strict=False))


def _settle(cpus: list[int] | None) -> None:
    if cpus is not None:
        compute_on(cpus)


def _take_seat(
    meeting: Meeting, store: Store, rank: int, plan: Plan, checkpoint: Checkpoint, team: Team | None = None
) -> Seat:
    device, size = local_name(plan.devices[rank].device), len(plan.devices)
    if device != "cpu":
        torch.cuda.set_device(device)
    parts = shares(checkpoint, plan.rank_weights)
    store.set(f"rank/{rank}", "here")
    _await_ranks(store, size, team)
    devices = [local_name(part.device) for part in plan.devices]
    group = watched(lambda: join(meeting, store, rank, size, devices), team)
    collectives = Collectives(group, compute_dtype(plan.dtype))
    exchange = None
    if meeting.path is not None:  # all ranks are on this machine
        width = checkpoint.config.hidden_size
        exchange = watched(lambda: open_exchange(collectives, torch.device(device), width), team)
    return Seat(parts, collectives, exchange)


def watched(work: Callable[[], Result], team: Team | None) -> Result:
    """Do `work`, which waits for all ranks, and give it up when one of `team` ends or after WAIT_S.

    Raises EngineError then; the thread that waits ends with the process.
    """
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # handed on to who waits
            done.set_exception(error)

    threading.Thread(target=run, name="join", daemon=True).start()
    deadline = time.monotonic() + WAIT_S
    while not wait([done], POLL_S).done:
        if team is not None:
            team.check()
        if time.monotonic() > deadline:
            raise EngineError(f"the ranks were not connected within {WAIT_S:g} s")
    return done.result()


def _await_ranks(store: Store, size: int, team: Team | None) -> None:
    """Return when every rank has its process, so that connecting does not wait for one that has ended."""
    deadline, missing = time.monotonic() + WAIT_S, set(range(size))
    while missing := {rank for rank in missing if not store.check([f"rank/{rank}"])}:
        if team is not None:
            team.check()
        if time.monotonic() > deadline:
            raise EngineError(f"rank {min(missing)} of {size} did not come within {WAIT_S:g} s")
        time.sleep(POLL_S)


def _meeting(nodes: Nodes) -> Meeting:
    return Meeting(host=nodes.host, port=nodes.port, prefix=nodes.prefix)


def _address(meeting: Meeting) -> dict[str, Any]:
    values = asdict(meeting)
    return {"meeting_path": values.pop("path"), **values}


def _free(load: Load) -> dict[str, int]:
    free = {device: free_bytes(device) for device in load.devices}
    return free if load.max_memory is None else {device: min(f, load.max_memory) for device, f in free.items()}


def _fingerprint(checkpoint: Checkpoint) -> str:
    """Return a hash that two checkpoints share when their headers say the same."""
    stored = [(name, tensor.storage, tensor.num_bytes) for name, tensor in sorted(checkpoint.tensors.items())]
    return hashlib.sha256(repr((checkpoint.config, stored)).encode()).hexdigest()
