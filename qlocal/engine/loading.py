"""From a `Load` to an engine that is ready: open, plan, load the weights, start the other ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch

from qlocal.engine.assembly import lead
from qlocal.engine.constants import digest, lead_constants, of_share
from qlocal.engine.engine import Engine
from qlocal.engine.keeping import Keeper, made_by
from qlocal.engine.memory import no_memory_for
from qlocal.engine.model_runner import ModelRunner
from qlocal.engine.relay import LeadingRunner
from qlocal.engine.speculation.loading import open_speculator
from qlocal.engine.team import Team
from qlocal.engine.used import used_bytes
from qlocal.errors import memory_in_words
from qlocal.formats.base import Checkpoint
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.kernels import dispatch
from qlocal.layers.decoder import Decoder
from qlocal.layers.kv_conditioning import is_packed, storage_for
from qlocal.layers.loader import OnProgress, load_model
from qlocal.layers.seat import Seat
from qlocal.plan import Plan
from qlocal.plan.words import brief
from qlocal.protocol import Load, Progress, Ready
from qlocal.schema import HeldHead


def load_engine(load: Load, on_progress: Callable[[Progress], None]) -> Engine:
    """Open, plan and load what `load` names. Raises a QLocalError when the file or the machine cannot."""
    start = time.perf_counter()
    before = used_bytes(["cpu"])
    checkpoint = open_checkpoint(Path(load.path))
    assembled = lead(load, checkpoint, on_progress)
    plan, seat, team = assembled.plan, assembled.seat, assembled.team
    dispatch.set_threads(assembled.threads)
    try:
        with memory_in_words(no_memory_for(checkpoint.path.name, plan)):
            with torch.inference_mode():
                decoder = load_model(checkpoint, plan, load.kernels, _progress(plan, team, on_progress), seat)
                speculator = open_speculator(plan, assembled.kernels)
            if seat is not None and team is not None:
                with team.explaining():
                    seat.collectives.wait_for_all()
            used = used_bytes(part.device for part in plan.devices)
            used = {device: max(0, taken - before.get(device, 0)) for device, taken in used.items()}
            ready = _ready(checkpoint, plan, time.perf_counter() - start, decoder.held_head, used)
            origin = made_by(checkpoint, plan, is_kept=load.sessions_folder is not None)
            runner, constants = _runner(decoder, plan, seat, team, load, origin)
            origin |= constants
            keeper, vocab_size = Keeper(runner.cache, load, origin), decoder.config.vocab_size
            return Engine(runner, plan, ready, vocab_size, origin, team=team, speculator=speculator, keeper=keeper)
    except BaseException:
        if team is not None:
            team.leave()
        raise


def _runner(
    decoder: Decoder, plan: Plan, seat: Seat | None, team: Team | None, load: Load, origin: Mapping[str, str]
) -> tuple[ModelRunner | LeadingRunner, dict[str, str]]:
    """Return what computes, with its cache, and what that cache's content depends on beyond `origin`."""
    constants, named = None, dict[str, str]()
    if is_packed(plan):
        folder = None if load.sessions_folder is None else Path(load.sessions_folder)
        with team.explaining() if team is not None else nullcontext():
            whole = lead_constants(decoder, seat, folder, origin)
        constants, named = of_share(whole, seat), {"constants": digest(whole)}
    runner = ModelRunner(decoder, storage_for(decoder, plan, constants), plan.block_size, is_whole=seat is None)
    if seat is None:
        return runner, named
    assert team is not None, "who leads has a team"
    return LeadingRunner(runner, seat, team), named


def _progress(plan: Plan, team: Team | None, on_progress: Callable[[Progress], None]) -> OnProgress:
    """Return what the loader calls: it tells how far loading is, and looks after the other ranks."""
    stage = f"loading {brief(plan)}"
    # Of a tensor split this rank knows its own device, which is the first.
    parts = plan.devices[:1] if plan.split == "tensor" else plan.devices
    device_of = {layer: part.device for part in parts for layer in part.layers}
    layers = {part.device: [0, 0] for part in parts}
    for device in device_of.values():
        layers[device][1] += 1

    def tell(done: int, total: int, layer: int | None) -> None:
        if team is not None:
            team.check()
        if layer is not None:
            layers[device_of[layer]][0] += 1
        on_progress(Progress(stage, done, total, {device: list(count) for device, count in layers.items()}))

    return tell


def _ready(
    checkpoint: Checkpoint, plan: Plan, load_s: float, held_head: HeldHead | None, used: dict[str, int]
) -> Ready:
    loaded_bytes = sum(stored.num_bytes for stored in checkpoint.tensors.values())
    devices = [part.device for part in plan.devices]
    return Ready(plan.max_context, plan.slots, plan.to_json(), devices, loaded_bytes, load_s, held_head, used)
