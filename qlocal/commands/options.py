"""Options that several commands share, and their values with errors in words."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import shtab

from qlocal.cache.saved_session import NAME_PATTERN
from qlocal.config import (
    CARD_RESERVE,
    FROM_CONTEXT,
    HEAD_CHOICES,
    NO_DRAFT,
    OFFLOAD_CHOICES,
    PREFILL_CHUNK,
    SESSIONS_BYTES,
    SPLIT_CHOICES,
    EngineOptions,
    Settings,
    device_list,
    kv_types,
    load_settings,
)

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def add_model(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add the positional MODEL."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?" if optional else None,
        help="a path, a catalogue name, or a name in the model folder",
    ).complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told what completes it


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add what says how a model is loaded."""
    group = parser.add_argument_group("loading")
    group.add_argument("--devices", type=devices, metavar="LIST", help="cpu, cuda:0, ... separated by commas")
    add_split(group)
    group.add_argument("--context", type=positive, metavar="TOKENS", help="size of the context; default: what fits")
    group.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="inputs of products")
    group.add_argument(
        "--kernels",
        choices=("auto", "reference", "int8"),
        default="auto",
        help="reference: plain torch; int8: cards read prompts in 8 bits",
    )
    group.add_argument("--threads", type=positive, metavar="N", help="threads of the CPU kernels")
    group.add_argument("--max-memory", type=size, metavar="SIZE", help="at most this much memory, as 20GB")
    group.add_argument("--slots", type=positive, default=EngineOptions.slots, metavar="N", help="conversations at once")
    group.add_argument(
        "--chunk", type=positive, default=PREFILL_CHUNK, metavar="TOKENS", help="most prompt tokens of a step"
    )
    group.add_argument(
        "--reserve", type=size, default=CARD_RESERVE, metavar="SIZE", help="of a card, for CUDA itself; 512MiB"
    )
    group.add_argument(
        "--offload", choices=OFFLOAD_CHOICES, default="auto", help="what may compute on the CPU when cards are full"
    )
    add_head(group)
    add_kv(group)
    add_draft(group)
    group.add_argument(
        "--sessions",
        type=quota,
        default=SESSIONS_BYTES,
        metavar="SIZE",
        help="of disk, for conversations that go on after a restart; 4GiB, 0 keeps none",
    )
    group.add_argument(
        "--host-cache", type=quota, default=0, metavar="SIZE", help="of host memory, for what a card's cache gives up"
    )


def add_kv(parser: argparse._ActionsContainer) -> None:
    """Add `--kv`."""
    parser.add_argument(
        "--kv", type=kv, metavar="TYPES", help="keys and values in f16, q8 or q4, two with a comma for K and V; or auto"
    )


def add_draft(parser: argparse._ActionsContainer) -> None:
    """Add `--draft`."""
    parser.add_argument(
        "--draft",
        metavar="MODEL",
        help=f"a small model of the family that guesses next tokens; {FROM_CONTEXT}: guesses by the text so far "
        f"alone, the default; {NO_DRAFT}: no guesses",
    ).complete = shtab.FILE  # type: ignore[attr-defined]  # as above


def add_split(parser: argparse._ActionsContainer) -> None:
    """Add `--split`."""
    parser.add_argument(
        "--split", choices=SPLIT_CHOICES, default="auto", help="over several devices: whole layers, or a part of all"
    )


def add_head(parser: argparse._ActionsContainer) -> None:
    """Add `--head`."""
    parser.add_argument(
        "--head", choices=HEAD_CHOICES, help="hold an output head of 16 bits as it is stored, or smaller"
    )


def engine_options(args: argparse.Namespace) -> tuple[EngineOptions, Settings]:
    """Return the engine's options by flags, environment, config.toml and defaults."""
    settings = load_settings({"devices": args.devices, "max_context": args.context, "threads": args.threads})
    options = EngineOptions(
        devices=settings.devices,
        max_context=settings.max_context,
        dtype=args.dtype,
        kernels=args.kernels,
        threads=settings.threads,
        slots=args.slots,
        max_memory=args.max_memory,
        head=args.head,
        kv=args.kv,
        offload=args.offload,
        prefill_chunk=args.chunk,
        card_reserve=args.reserve,
        split=args.split,
        draft=args.draft,
        sessions=settings.sessions if args.sessions else None,
        sessions_bytes=args.sessions,
        host_cache_bytes=args.host_cache,
    )
    return options, settings


def devices(text: str) -> tuple[str, ...]:
    """Return the device names of a list with commas."""
    try:
        return device_list(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def positive(text: str) -> int:
    """Return a whole number above 0; 32k and 4K are understood as multiples of 1024."""
    found = re.fullmatch(r"(\d{1,12})([kK]?)", text)
    if found is None or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return int(found[1]) * (1024 if found[2] else 1)


def size(text: str) -> int:
    """Return bytes of `20GB`, `512M` or a plain number; powers of 1024."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?) ?([KMGT]?)i?B?", text, re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no size; write 20GB or 512M")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def quota(text: str) -> int:
    """Return bytes as `size` does, or 0 for `0`."""
    return 0 if text == "0" else size(text)


def sizes(text: str) -> tuple[int, ...]:
    """Return the bytes of `24GiB,24GiB`."""
    return tuple(size(part) for part in text.split(","))


def kv(text: str) -> str:
    """Return how the cache is to hold keys and values, as it was given."""
    try:
        kv_types(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def seconds(text: str) -> float:
    """Return seconds above 0."""
    return _ranged(text, 0.0, 1e9, "seconds above 0", exclusive=True)


def temperature(text: str) -> float:
    return _ranged(text, 0.0, 2.0, "a number from 0 to 2")


def probability(text: str) -> float:
    return _ranged(text, 0.0, 1.0, "a number above 0, at most 1", exclusive=True)


def seed(text: str) -> int:
    if not re.fullmatch(r"\d{1,18}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from 0")
    return int(text)


def port(text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is no port from 0 to 65535")
    return int(text)


def readable_file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file '{text}'")
    return path


def session_name(text: str) -> str:
    if re.fullmatch(NAME_PATTERN, text) is None:
        raise argparse.ArgumentTypeError(f"'{text}' is no name: up to 64 letters, digits, dots, hyphens, underscores")
    return text


def human_bytes(count: int | float) -> str:
    """Return a size for reading: `44.0 GB` (powers of 1000, as disks are sold)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("the loop ends at TB")


def _ranged(text: str, low: float, high: float, expected: str, *, exclusive: bool = False) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no number") from error
    if not (low < value if exclusive else low <= value) or not value <= high:
        raise argparse.ArgumentTypeError(f"{text} is out of range, expected {expected}")
    return value
