"""From a request to a plan, or to the sentence that says why there is none. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qlocal.config import CARD_RESERVE, FROM_CONTEXT, HEAD_CHOICES, NO_DRAFT, OFFLOAD_CHOICES, PREFILL_CHUNK, STORED
from qlocal.errors import PlanError, UsageError
from qlocal.formats.base import Checkpoint
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.ggml_types import LAYOUTS
from qlocal.models.long_context import context_limit, stretched_limit, yarn_factor
from qlocal.plan import levers
from qlocal.plan.demand import KV_BITS, cache_types, head_of, held_type
from qlocal.plan.layout import Held
from qlocal.plan.placement import Placement, Placer
from qlocal.plan.places import CPU, here
from qlocal.plan.plan import DevicePlan, DraftPlan, Plan
from qlocal.plan.refusal import refusal
from qlocal.plan.request import (
    BLOCK_SIZE,
    ENOUGH_CONTEXT,
    MIN_CONTEXT,
    SPLIT_CHOICES,
    Request,
)
from qlocal.protocol import Load


def make_plan(
    checkpoint: Checkpoint,
    devices: Sequence[str],
    max_context: int | None = None,
    slots: int = 8,
    dtype: str = "bfloat16",
    max_memory: int | None = None,
    block_size: int = BLOCK_SIZE,
    head: str = STORED,
    kv: str | None = None,
    split: str = "layer",
    offload: str = "auto",
    prefill_chunk: int = PREFILL_CHUNK,
    card_reserve: int = CARD_RESERVE,
    free: Mapping[str, int] | None = None,
    guesses: str = FROM_CONTEXT,
) -> Plan:
    """Place a checkpoint on this machine's `devices`, or raise PlanError with the numbers and what would make it fit.

    max_context: tokens of one sequence; None takes what fits, up to the model's own limit.
    max_memory: bytes to use at most on every device; None takes what is free. Devices may repeat: `cpu,cpu`
    splits the layers over two shares of the same memory. head: how an output head of 16 bits is held; one that is
    quantized already stays as it is. kv: how the cache holds keys and values, as `--kv` takes it; None is 16 bits,
    or 32 with float32. offload: one of `config.OFFLOAD_CHOICES`. A `cpu` among cards is where offloaded
    layers compute, which it is without being named. split: `layer`, `tensor`, or `auto` for what gives more context.
    free: bytes of devices that other machines have told. guesses: as in `Plan`; a draft model is placed too.
    """
    places, host = here(devices, max_memory, card_reserve, free)
    split = split if len(places) > 1 else "layer"
    key_type, value_type = cache_types(kv, dtype)
    request = Request(
        checkpoint,
        places,
        longest_context(checkpoint, max_context),
        host=host,
        max_context=max_context,
        slots=slots,
        dtype=dtype,
        key_type=key_type,
        value_type=value_type,
        head=head,
        split="layer" if split == "auto" else split,
        offload=offload,
        block_size=block_size,
        prefill_chunk=prefill_chunk,
        is_for_loading=True,
        guesses=guesses,
        draft=None if guesses in (FROM_CONTEXT, NO_DRAFT) else open_checkpoint(Path(guesses)),
    )
    request = levers.with_cache_types(request)
    return plan_for(levers.better_split(request) if split == "auto" else request)


def longest_context(checkpoint: Checkpoint, asked: int | None) -> int:
    """Return the limit of a request: the model's own context, and what YaRN adds to it only for who asks for more."""
    native = context_limit(checkpoint.config)
    return native if asked is None or asked <= native else stretched_limit(checkpoint.config, checkpoint.architecture)


def plan_load(
    checkpoint: Checkpoint, load: Load, devices: Sequence[str] | None = None, free: Mapping[str, int] | None = None
) -> Plan:
    """Return the plan by which the engine loads what a message asks for: the server's and the rank's are the same.

    devices, free: of all nodes, where there are several; these are ranks whatever `load.split` says.
    """
    return make_plan(
        checkpoint,
        devices or load.devices,
        load.max_context,
        load.slots,
        load.dtype,
        load.max_memory,
        head=load.head,
        kv=load.kv,
        offload=load.offload,
        prefill_chunk=load.prefill_chunk,
        card_reserve=load.card_reserve,
        split="tensor" if load.nodes is not None else load.split,
        free=free,
        guesses=load.draft,
    )


def plan_for(request: Request) -> Plan:
    """Return the plan of a request. UsageError for a choice that does not exist, PlanError for what does not fit."""
    _check(request)
    placer = Placer(request)
    found = _chosen(placer)
    if found is None:
        raise refusal(placer)
    context, offloaded = found
    return _plan(placer, placer.evenly(context, offloaded), context)


def _check(request: Request) -> None:
    choices = {"head": HEAD_CHOICES, "split": SPLIT_CHOICES, "offload": OFFLOAD_CHOICES}
    choices |= {"key_type": tuple(KV_BITS), "value_type": tuple(KV_BITS)}
    for name, known in choices.items():
        value = getattr(request, name)
        if value not in known:
            shown = name.replace("_", " ")
            raise UsageError(f"there is no {shown} '{value[:40]}'", hint=f"One of {', '.join(known)}.")
    if request.offload == "experts" and not request.checkpoint.architecture.is_moe:
        raise UsageError(
            f"--offload experts: {request.checkpoint.path.name} has no experts",
            hint="With --offload layers whole layers stay on the CPU.",
        )
    _check_head(request)
    if request.max_context is not None and request.max_context > request.limit:
        raise PlanError(
            f"a context of {request.max_context} tokens is asked for, the model was made for {request.limit}",
            hint=f"Ask for at most {request.limit} tokens.",
        )


def _check_head(request: Request) -> None:
    stored = head_of(request.checkpoint)
    held = held_type(stored, request.head)
    block_size = 1 if held is None else LAYOUTS[held].block_size
    if stored.shape[1] % block_size:
        raise PlanError(
            f"the head of {request.checkpoint.path.name} has {stored.shape[1]} columns, "
            f"{request.head} needs a multiple of {block_size}",
            hint="Hold it as q8_0, or as it is stored.",
        )


def _chosen(placer: Placer) -> tuple[int, int] | None:
    """Return the context and how many layers the host has a part of, or None where nothing fits."""
    request = placer.request
    if request.max_context is not None:
        offloaded = placer.least_offloaded(request.max_context)
        return None if offloaded is None else (request.max_context, offloaded)
    least = min(MIN_CONTEXT, request.limit)
    largest = placer.largest_context()
    if largest >= min(request.limit, request.limit if request.offload == "experts" else ENOUGH_CONTEXT):
        return largest, 0
    if not request.can_offload:
        return (largest, 0) if largest >= least else None
    # Attention of a mixture is small: with experts on the host its whole context may fit beside it.
    wanted = request.limit if request.offloads_experts else min(request.limit, ENOUGH_CONTEXT)
    while wanted >= least:
        offloaded = placer.least_offloaded(wanted)
        if offloaded is not None:
            return placer.largest_context(offloaded), offloaded
        wanted //= 2
    return None


def _plan(placer: Placer, placed: Placement, context: int) -> Plan:
    request, num_blocks = placer.request, placer.num_blocks(placed, context)
    return Plan(
        devices=tuple(_device_plans(placer, placed, num_blocks)),
        embedding_device=CPU,
        head_device=request.places[-1].device,
        max_context=context,
        slots=request.slots,
        num_blocks=num_blocks,
        block_size=request.block_size,
        dtype=request.dtype,
        key_type=request.key_type,
        value_type=request.value_type,
        head=request.head,
        split=request.split,
        host_experts=tuple(range(placed.offloaded)) if request.offloads_experts else (),
        embedding_bytes=request.demand.embedding_bytes,
        prefill_chunk=request.prefill_chunk,
        rank_weights=tuple(place.room for place in request.places) if request.split == "tensor" else (),
        guesses=request.guesses,
        yarn_factor=yarn_factor(request.checkpoint.config, request.checkpoint.architecture, context),
        draft=_draft_plan(request, placed, num_blocks, context),
    )


def _draft_plan(request: Request, placed: Placement, num_blocks: int, context: int) -> DraftPlan | None:
    draft = next((share.draft for share in placed.shares if share.draft is not None), None)
    if draft is None or request.draft is None:
        return None
    return DraftPlan(
        path=str(request.draft.path),
        device=draft.device,
        num_layers=request.draft.config.num_hidden_layers,
        weight_bytes=draft.weights.allocated,
        mapped_bytes=draft.weights.mapped,
        cache_bytes=draft.cache_bytes(num_blocks),
        scratch_bytes=draft.scratch_bytes,
        yarn_factor=yarn_factor(request.draft.config, request.draft.architecture, context),
    )


def _device_plans(placer: Placer, placed: Placement, num_blocks: int) -> list[DevicePlan]:
    plans = []
    for share in placed.shares:
        place, weights = share.place, share.weights + (Held() if share.draft is None else share.draft.weights)
        beside = 0 if share.draft is None else share.draft.scratch_bytes
        cache = share.cache_bytes(placer.request.demand, num_blocks)
        plans.append(
            DevicePlan(
                place.device,
                share.layers,
                weights.allocated,
                weights.mapped,
                cache,
                share.scratch_bytes + beside,
                place.reserve_bytes,
                place.free_bytes,
            )
        )
    return plans
