"""`qlocal plan`: what a model would take on this machine or on another, and the largest context that fits."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from typing import Any

from qlocal import catalog
from qlocal.clean import clean_line
from qlocal.commands.options import add_draft, add_head, add_kv, add_model, devices, positive, size, sizes
from qlocal.config import (
    CARD_RESERVE,
    FROM_CONTEXT,
    NO_DRAFT,
    OFFLOAD_CHOICES,
    PREFILL_CHUNK,
    STORED,
    load_settings,
)
from qlocal.errors import PlanError, UsageError
from qlocal.formats.base import Checkpoint
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.formats.described import TYPES, Description, describe
from qlocal.models.long_context import context_limit
from qlocal.plan import levers, words
from qlocal.plan.demand import cache_types
from qlocal.plan.make import longest_context, plan_for
from qlocal.plan.places import CPU, UNLIMITED_BYTES, Place, here, place
from qlocal.plan.plan import Plan
from qlocal.plan.request import SPLIT_CHOICES, Request


@dataclass(frozen=True)
class Subject:
    """What is planned for. limit: its longest context; native_limit: without YaRN."""

    checkpoint: Checkpoint
    title: str
    limit: int
    native_limit: int
    description: Description | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    machine = parser.add_argument_group("machine (default: the devices that loading takes, with what is free now)")
    machine.add_argument("--gpus", type=sizes, metavar="SIZES", help="cards by their free memory, as 24GiB,24GiB")
    machine.add_argument("--ram", type=size, metavar="SIZE", help="with --gpus: free memory of the host")
    machine.add_argument("--devices", type=devices, metavar="LIST", help="cpu, cuda:0, ... of this machine")
    machine.add_argument(
        "--reserve", type=size, default=CARD_RESERVE, metavar="SIZE", help="of a card, for CUDA itself; 512MiB"
    )
    loading = parser.add_argument_group("loading")
    loading.add_argument("--context", type=positive, metavar="TOKENS", help="size of the context; default: what fits")
    add_kv(loading)
    loading.add_argument("--split", choices=("auto", *SPLIT_CHOICES), default="auto", help="among several cards")
    loading.add_argument("--slots", type=positive, default=8, metavar="N", help="conversations at once")
    loading.add_argument("--chunk", type=positive, default=PREFILL_CHUNK, metavar="TOKENS", help="prompt of a step")
    loading.add_argument("--offload", choices=OFFLOAD_CHOICES, default="auto", help="what may compute on the CPU")
    loading.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="inputs of products")
    add_head(loading)
    add_draft(loading)
    described = parser.add_argument_group("a model of the catalogue, as it would be")
    described.add_argument("--type", choices=TYPES, metavar="TYPE", help=f"one of {', '.join(TYPES)}")
    described.add_argument("--group-size", type=positive, default=128, metavar="N", help="of AWQ and GPTQ")
    described.add_argument("--pad-ffn", choices=("auto", "none"), default="auto", help="as `quantize` pads it")
    described.add_argument("--quantize-head", action="store_true", help="the head of AWQ and GPTQ in codes too")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    subject = _subject(args)
    request = _request(args, subject)
    found: Plan | None = None
    try:
        found, refusal = plan_for(request), None
    except PlanError as error:
        refusal = error
    alone = levers.on_the_cards(request)
    contexts, options = levers.largest_contexts(alone), _levers(subject, alone)
    if args.json:
        print(json.dumps(_json(subject, found, refusal, contexts, options)))
        return PlanError.exit_code if refusal else 0
    for line in _lines(subject, alone, found, contexts, options):
        print(clean_line(line))
    if refusal is not None:
        raise refusal
    return 0


def _subject(args: argparse.Namespace) -> Subject:
    """Return the checkpoint that MODEL names, or what the catalogue says of one that is not here."""
    home, entry = load_settings().home, catalog.entries().get(args.model.lower())
    if args.type is None:
        try:
            checkpoint = open_checkpoint(catalog.resolve(args.model, home))
        except UsageError:
            if entry is None:
                raise
        else:
            limit, native = longest_context(checkpoint, args.context), context_limit(checkpoint.config)
            return Subject(checkpoint, f"{args.model}, {checkpoint.format}", limit, native)
    if entry is None:
        raise UsageError(f"--type describes models of the catalogue, '{args.model}' is none")
    kind = args.type or str(entry.recommended.get("format", "awq"))
    description = Description(kind, args.group_size, args.pad_ffn == "auto", args.quantize_head)
    return _described(entry, description)


def _draft(name: str | None) -> Checkpoint | None:
    """Return the draft model that `--draft` names, as it is here or as the catalogue recommends it."""
    if name in (None, FROM_CONTEXT, NO_DRAFT):
        return None
    try:
        return open_checkpoint(catalog.resolve(name, load_settings().home))
    except UsageError:
        entry = catalog.entries().get(name.lower())
        if entry is None:
            raise
        kind = str(entry.recommended.get("format", "awq"))
        return describe(entry.name, entry.architecture, entry.config(), Description(kind))


def _described(entry: catalog.Entry, description: Description) -> Subject:
    config = entry.config()
    checkpoint = describe(entry.name, entry.architecture, config, description)
    padded = checkpoint.config.intermediate_size
    title = f"{entry.name} as {description.type}, computed from its geometry"
    if padded != config.intermediate_size:
        title += f", FFN padded from {config.intermediate_size} to {padded}"
    native = max(entry.context, context_limit(config))
    yarn = entry.yarn or {"factor": 1.0, "original_max_position_embeddings": native}
    limit = max(native, int(yarn["factor"] * yarn["original_max_position_embeddings"]))
    return Subject(checkpoint, title, limit, native, description)


def _request(args: argparse.Namespace, subject: Subject) -> Request:
    key_type, value_type = cache_types(args.kv, args.dtype)
    places, host = _machine(args)
    request = Request(
        subject.checkpoint,
        places,
        subject.limit,
        host=host,
        max_context=args.context,
        slots=args.slots,
        dtype=args.dtype,
        key_type=key_type,
        value_type=value_type,
        head=args.head or STORED,
        split="layer" if args.split == "auto" else args.split,
        offload=args.offload,
        prefill_chunk=args.chunk,
        guesses=args.draft or FROM_CONTEXT,
        draft=_draft(args.draft),
    )
    request = levers.with_cache_types(request)
    return levers.better_split(request) if args.split == "auto" else request


def _machine(args: argparse.Namespace) -> tuple[tuple[Place, ...], Place | None]:
    """Return the cards that `--gpus` tells with their host, or what this machine has."""
    if args.gpus is None:
        if args.ram is not None:
            raise UsageError("--ram belongs to --gpus", hint="Say --max-memory where a model is loaded.")
        return here(args.devices or load_settings().devices, card_reserve=args.reserve)
    if args.devices is not None:
        raise UsageError("--gpus and --devices exclude each other")
    host = Place(CPU, UNLIMITED_BYTES, 0) if args.ram is None else place(CPU, args.ram)
    return tuple(place(f"cuda:{i}", free, args.reserve) for i, free in enumerate(args.gpus)), host


def _levers(subject: Subject, request: Request) -> list[levers.Lever]:
    """Return every option that gives more context, each alone."""
    found = levers.levers(request)
    description, stored = subject.description, request.head == STORED
    if description is not None and description.type in ("awq", "gptq") and stored and not description.quantizes_head:
        coded = _described(catalog.entry(subject.checkpoint.path.name), replace(description, quantizes_head=True))
        found.append(levers.Lever("--quantize-head", replace(request, checkpoint=coded.checkpoint)))
    return found


def _lines(
    subject: Subject,
    request: Request,
    found: Plan | None,
    contexts: dict[str, dict[str, int]],
    options: list[levers.Lever],
) -> list[str]:
    lines = [subject.title, ""]
    if found is not None:
        lines += [*words.table(found), "", *words.notes(found), ""]
    lines += words.contexts(contexts)
    if subject.limit > subject.native_limit:
        lines.append(f"made for {subject.native_limit:,} tokens; more, up to {subject.limit:,}, with YaRN")
    lines += ["", *_lever_lines(request, options), *_together_line(subject, request)]
    return lines


def _lever_lines(request: Request, options: list[levers.Lever]) -> list[str]:
    best = levers.best_context(request)
    more = [(lever.option, lever.context) for lever in options]
    gains = [f"  {option:18} {context:>9,}" for option, context in more if context > best]
    if not gains:
        return []
    return [f"more than {best:,} tokens, each option alone:" if best else "what would make it fit:", *gains]


def _together_line(subject: Subject, request: Request) -> list[str]:
    """Return the line of all options together, the head in codes where that is one."""
    coded = next((lever for lever in _levers(subject, request) if lever.option == "--quantize-head"), None)
    found = levers.together(request if coded is None else coded.request)
    if found.context <= levers.best_context(request):
        return []
    option = found.option if coded is None else f"{coded.option} {found.option}"
    return [f"  {found.context:,} with {option}"]


def _json(
    subject: Subject,
    found: Plan | None,
    refusal: PlanError | None,
    contexts: dict[str, dict[str, int]],
    options: list[levers.Lever],
) -> dict[str, Any]:
    return {
        "model": str(subject.checkpoint.path),
        "format": subject.checkpoint.format,
        "native_context": subject.native_limit,
        "context_limit": subject.limit,
        "fits": found is not None,
        "error": None if refusal is None else {"message": refusal.message, "hint": refusal.hint},
        "plan": None if found is None else found.to_json(),
        "largest_context": contexts,
        "options": {lever.option: lever.context for lever in options},
    }
