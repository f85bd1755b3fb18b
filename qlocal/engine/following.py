"""A rank that is not rank 0: it loads its part of the model and does what it is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from qlocal.engine import assembly
from qlocal.engine.constants import follow_constants
from qlocal.engine.memory import no_memory_for
from qlocal.engine.model_runner import ModelRunner
from qlocal.engine.relay import follow_steps
from qlocal.engine.team import LOST_CONTACT, is_lost_contact
from qlocal.errors import EngineError, memory_in_words
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.kernels import dispatch
from qlocal.layers.decoder import Decoder
from qlocal.layers.kv_conditioning import is_packed, storage_for
from qlocal.layers.loader import load_model
from qlocal.layers.seat import Seat
from qlocal.parallel.rendezvous import leave
from qlocal.plan import Plan
from qlocal.plan.words import brief
from qlocal.protocol import Failed, Join, Load, Message, Progress, Ready

Send = Callable[[Message], None]


def run(first: Join | Load, send: Send) -> None:
    """Join the others, load, follow rank 0 to its end. A node's first rank tells its progress and when it is ready.

    Raises a QLocalError for what cannot be loaded, and when rank 0 is lost.
    """
    tells = isinstance(first, Load)
    if isinstance(first, Join):
        checkpoint, assembled = assembly.follow(first)
    else:
        assert first.nodes is not None, "a Load makes a follower on another node alone"
        checkpoint = open_checkpoint(Path(first.path))
        assembled = assembly.follow_node(first, first.nodes, checkpoint)
    plan, seat, team = assembled.plan, assembled.seat, assembled.team
    assert seat is not None, "who follows has a seat"
    if team is not None:
        team.watch(lambda error: _end(error, send))
    dispatch.set_threads(assembled.threads)

    def on_progress(done: int, total: int, layer: int | None) -> None:
        if tells:
            send(Progress(f"loading {brief(plan)}", done, total))

    with memory_in_words(no_memory_for(checkpoint.path.name, plan)), torch.inference_mode():
        decoder = load_model(checkpoint, plan, assembled.kernels, on_progress, seat)
    constants = _agreed(decoder, plan, seat)
    runner = ModelRunner(decoder, storage_for(decoder, plan, constants), plan.block_size, is_whole=False)
    if tells:
        send(Ready(plan.max_context, plan.slots, plan.to_json(), [part.device for part in plan.devices], 0, 0.0))
    follow_steps(runner, seat.collectives)
    leave()
    if team is not None:
        team.end()


def _agreed(decoder: Decoder, plan: Plan, seat: Seat) -> Tensor | None:
    """Wait for all ranks; return the constants of this rank's heads where the plan needs them."""
    try:
        seat.collectives.wait_for_all()
        return follow_constants(decoder, seat) if is_packed(plan) else None
    except RuntimeError as error:
        if is_lost_contact(error):
            raise EngineError(f"{LOST_CONTACT} while the model was loading") from error
        raise


def _end(error: EngineError, send: Send) -> None:
    """End the whole process, which may be waiting for rank 0, because a rank that it has started is lost."""
    send(Failed(error.message, error.hint))
    os._exit(1)
