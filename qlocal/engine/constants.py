"""The constants that packed keys and values are rounded by: one set a model, for all ranks and from start to start.

They are measured, and another way to compute gives them other last bits: another split of the model, another card. What
is kept of conversations was rounded by those that were measured first, so those lie beside it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from qlocal.cache.block_file import read_block, write_block
from qlocal.errors import SessionError
from qlocal.layers.decoder import Decoder
from qlocal.layers.kv_conditioning import measure_constants
from qlocal.layers.seat import Seat

log = logging.getLogger(__name__)
SUFFIX = ".constants"
_PER_HEAD = 3


def lead_constants(decoder: Decoder, seat: Seat | None, folder: Path | None, made_by: Mapping[str, str]) -> Tensor:
    """Return the constants of all heads, (L, 3, Hk, Dh) f32, as rank 0 or as the only one.

    folder: where conversations are kept, None for nowhere; made_by: what the constants depend on. Every other rank
    calls `follow_constants` at the same time. A folder that cannot be used is told to the log.
    """
    heads = decoder.config.num_key_value_heads if seat is None else max(part.kv_heads.stop for part in seat.shares)
    whole = torch.zeros(decoder.config.num_hidden_layers, _PER_HEAD, heads, decoder.config.head_dim)
    path = None if folder is None else folder / f"{_name(made_by)}{SUFFIX}"
    is_kept = path is not None and _read(path, made_by, whole)
    if seat is not None:
        seat.collectives.send(bytes([is_kept]))
    if not is_kept:
        _measure(decoder, seat, whole)
        if path is not None:
            _write(path, made_by, whole)
    if seat is not None:
        for rank in range(1, seat.collectives.size):
            seat.collectives.give(whole, rank)
    return whole


def follow_constants(decoder: Decoder, seat: Seat) -> Tensor:
    """Return the constants of this rank's heads, which is not rank 0."""
    if not seat.collectives.receive()[0]:
        seat.collectives.give(measure_constants(decoder), 0)
    heads = max(part.kv_heads.stop for part in seat.shares)
    whole = torch.empty(decoder.config.num_hidden_layers, _PER_HEAD, heads, decoder.config.head_dim)
    seat.collectives.take(whole, 0)
    return of_share(whole, seat)


def of_share(whole: Tensor, seat: Seat | None) -> Tensor:
    """Return what belongs to this rank's heads."""
    return whole if seat is None else whole[:, :, seat.share.kv_heads.start : seat.share.kv_heads.stop].contiguous()


def digest(whole: Tensor) -> str:
    """Return what tells two sets apart."""
    return hashlib.blake2b(whole.numpy().tobytes(), digest_size=16).hexdigest()


def _measure(decoder: Decoder, seat: Seat | None, whole: Tensor) -> None:
    own = measure_constants(decoder)
    if seat is None:
        whole.copy_(own)
        return
    # A head that several ranks hold is measured by the queries of each: the last one's are taken.
    for rank, share in enumerate(seat.shares):
        part = whole[:, :, share.kv_heads.start : share.kv_heads.stop]
        if rank:
            own = torch.empty_like(part, memory_format=torch.contiguous_format)
            seat.collectives.take(own, rank)
        part.copy_(own)


def _read(path: Path, made_by: Mapping[str, str], whole: Tensor) -> bool:
    try:
        read_block(path, [whole.view(torch.uint8)]).require(made_by, "", [], path)
        return True
    except FileNotFoundError:
        return False
    except (SessionError, OSError) as error:
        log.warning("%s; it is measured again, and what depends on it computed again", error)
        return False


def _write(path: Path, made_by: Mapping[str, str], whole: Tensor) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_block(path, made_by, "", [], [whole.view(torch.uint8)])
    except OSError as error:
        log.warning("%s cannot be stored in %s: %s", path.name, path.parent, error)


def _name(made_by: Mapping[str, str]) -> str:
    return hashlib.blake2b(repr(sorted(made_by.items())).encode(), digest_size=16).hexdigest()
