"""What ranks exchange, over torch.distributed: gloo for tensors on the CPU, NCCL for tensors on cards."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

_LENGTH = struct.Struct("<Q")
_FIRST_BYTES = 2048
"""Of a message, its length included: a step of a few sequences is one broadcast."""


@dataclass
class Traffic:
    """How often this rank took part in what, and the bytes that it gave to it (of a broadcast, the message)."""

    all_reduces: int = 0
    all_reduce_bytes: int = 0
    gathers: int = 0
    gather_bytes: int = 0
    broadcasts: int = 0
    broadcast_bytes: int = 0
    transfers: int = 0
    transfer_bytes: int = 0


class Collectives:
    """What the ranks of one model do together; every rank calls the same in the same order.

    wire: the dtype that partial sums travel in.
    """

    def __init__(self, group: dist.ProcessGroup, wire: torch.dtype) -> None:
        self._group = group
        self.wire = wire
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.traffic = Traffic()

    def start_adding_up(self, part: Tensor) -> Callable[[], Tensor]:
        """Begin to add up all ranks' parts; return what waits for the sum, the same bits on every rank.

        part: (T, D) f32, not used afterwards. Between cards nobody waits but the device."""
        sent, dtype = part.to(self.wire), part.dtype
        work = dist.all_reduce(sent, group=self._group, async_op=True)
        self.traffic.all_reduces += 1
        self.traffic.all_reduce_bytes += sent.nbytes

        def finish() -> Tensor:
            if work is not None:
                work.wait()
            return sent.to(dtype)

        return finish

    def add_up_exactly(self, part: Tensor) -> Tensor:
        """Return the sum of all ranks' parts in their own dtype: for figures, not for what layers compute."""
        total = part.clone()
        dist.all_reduce(total, group=self._group)
        return total

    def gather_columns(self, part: Tensor, columns: Sequence[int]) -> Tensor:
        """Put matrices beside each other on rank 0.

        part: (T, columns[rank]). Returns (T, sum of columns) on rank 0, and elsewhere `part`.
        """
        sent = F.pad(part, (0, max(columns) - part.shape[1]))  # a gather takes equal sizes
        parts = [torch.empty_like(sent) for _ in columns] if self.rank == 0 else None
        dist.gather(sent, parts, group=self._group, group_dst=0)
        self.traffic.gathers += 1
        self.traffic.gather_bytes += sent.nbytes
        if parts is None:
            return part
        return torch.cat([p[:, :count] for p, count in zip(parts, columns, strict=True)], dim=1)

    def send(self, message: bytes) -> None:
        """Give every other rank a message; called on rank 0 alone, while the others `receive`."""
        head = bytearray(_LENGTH.pack(len(message)) + message[: _FIRST_BYTES - _LENGTH.size])
        self._broadcast(torch.frombuffer(head.ljust(_FIRST_BYTES, b"\0"), dtype=torch.uint8))
        rest = message[_FIRST_BYTES - _LENGTH.size :]
        if rest:
            self._broadcast(torch.frombuffer(bytearray(rest), dtype=torch.uint8))

    def receive(self) -> bytes:
        """Return the next message of rank 0, waiting for it as long as it takes."""
        head = torch.empty(_FIRST_BYTES, dtype=torch.uint8)
        self._broadcast(head)
        (length,) = _LENGTH.unpack(head[: _LENGTH.size].numpy().tobytes())
        message = head[_LENGTH.size :].numpy().tobytes()
        if length > len(message):
            rest = torch.empty(length - len(message), dtype=torch.uint8)
            self._broadcast(rest)
            message += rest.numpy().tobytes()
        return message[:length]

    def give(self, part: Tensor, rank: int) -> None:
        """Give one other rank a tensor on the host, while it takes it."""
        dist.send(part, group=self._group, group_dst=rank)
        self._note_transfer(part)

    def take(self, room: Tensor, rank: int) -> None:
        """Fill a tensor on the host with what another rank gives."""
        dist.recv(room, group=self._group, group_src=rank)
        self._note_transfer(room)

    def all_agree(self, mine: bool) -> bool:
        """Return whether every rank says yes, the same on all."""
        votes = torch.tensor([int(mine)])
        dist.all_reduce(votes, op=dist.ReduceOp.MIN, group=self._group)
        return bool(votes.item())

    def wait_for_all(self) -> None:
        """Return when every rank has come here."""
        dist.barrier(self._group)

    def _note_transfer(self, data: Tensor) -> None:
        self.traffic.transfers += 1
        self.traffic.transfer_bytes += data.nbytes

    def _broadcast(self, data: Tensor) -> None:
        dist.broadcast(data, group=self._group, group_src=0)
        self.traffic.broadcasts += 1
        self.traffic.broadcast_bytes += data.nbytes
