"""The numbers of one step on a card: angles, places in the cache, who attends to what. One copy brings them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlocal.kernels.triton.attention import Pieces
from qlocal.layers.card_draws import Drawing, DrawInputs, Draws, TokenTable, draw_sizes
from qlocal.layers.paged_attention import TokenRun
from qlocal.layers.rotary import Rotation

_MIN_TABLE = 16
_ALIGNMENT = 16
_FLOATS = frozenset({"hidden_states", "cos", "sin", "settings"})


@dataclass(frozen=True)
class StepShape:
    """What a recorded step is recorded for: tokens, tokens of pieces, pieces, tokens of the longest one (a power of
    two), blocks that a table has room for, blocks of long runs, and what drawing takes, None for the likeliest."""

    tokens: int
    short_tokens: int
    pieces: int
    longest: int
    table: int
    long_blocks: int = 0
    drawing: Drawing | None = None


@dataclass(frozen=True)
class LongRun:
    """A run whose keys are read back from the cache. first_row: of its tokens in the step; first_block: of its blocks
    among those of all long runs."""

    first_row: int
    run: TokenRun
    first_block: int = 0


@dataclass(frozen=True)
class StepLayout:
    """How the runs of a step are attended to: short ones in pieces by the card's kernel, long ones one by one.

    short_rows: ranges of rows that pieces cover. pieces: (first row, tokens, tokens before them, blocks), in rows of
    these ranges put together, as is piece_of_row."""

    tokens: int
    pieces: list[tuple[int, int, int, list[int]]]
    piece_of_row: list[int]
    short_rows: list[tuple[int, int]]
    long_runs: list[LongRun]

    @property
    def shape(self) -> StepShape:
        longest = max((length for _, length, _, _ in self.pieces), default=1)
        table = max((len(blocks) for *_, blocks in self.pieces), default=1)
        sizes = (self.tokens, len(self.piece_of_row), len(self.pieces))
        long_blocks = sum(len(long_run.run.blocks) for long_run in self.long_runs)
        return StepShape(*sizes, _power_of_two(longest), max(_MIN_TABLE, _power_of_two(table)), long_blocks)


def lay_out(runs: Sequence[TokenRun], longest_piece: int, longest_run: int) -> StepLayout:
    """Cut runs of up to `longest_run` tokens into pieces; longer ones stay whole."""
    layout, row, block = StepLayout(sum(run.length for run in runs), [], [], [], []), 0, 0
    for run in runs:
        if run.length > longest_run:
            layout.long_runs.append(LongRun(row, run, block))
            block += len(run.blocks)
        else:
            _add_short_rows(layout, row, run.length)
            _add_pieces(layout, run, longest_piece)
        row += run.length
    return layout


def _add_pieces(layout: StepLayout, run: TokenRun, longest: int) -> None:
    row = len(layout.piece_of_row)
    for first in range(0, run.length, longest):
        length = min(longest, run.length - first)
        layout.piece_of_row.extend([len(layout.pieces)] * length)
        layout.pieces.append((row + first, length, run.num_past + first, run.blocks))


def _add_short_rows(layout: StepLayout, row: int, length: int) -> None:
    last = row + length
    if layout.short_rows and layout.short_rows[-1][1] == row:
        row, _ = layout.short_rows.pop()
    layout.short_rows.append((row, last))


class StepInputs:
    """Room for the numbers of steps of one shape, on the host and on a device; the latter's addresses never change.

    hidden_states: (T, D) f32, the residual stream before the first layer. cos, sin: (T, Dh / 2) f32. slots: (T,) int32,
    block * block_size + place. long_tables: (n,) int32, the blocks of long runs. pieces: as attention takes them;
    draws: as drawing does, where tokens are drawn."""

    def __init__(self, shape: StepShape, hidden_size: int, head_dim: int, device: torch.device) -> None:
        tokens, half = shape.tokens, head_dim // 2
        sizes = {
            "hidden_states": (tokens, hidden_size),
            "cos": (tokens, half),
            "sin": (tokens, half),
            "slots": (tokens,),
            "rows": (shape.short_tokens,),
            "extents": (shape.pieces, 3),
            "tables": (shape.pieces, shape.table),
            "long_tables": (shape.long_blocks,),
            **({} if shape.drawing is None else draw_sizes(tokens)),
        }
        # All are numbers of four bytes.
        total = sum(-(-_count(size) // _ALIGNMENT) * _ALIGNMENT for size in sizes.values())
        self._is_card = device.type == "cuda"
        self._host = torch.zeros(total, dtype=torch.int32, pin_memory=self._is_card)
        self._memory = torch.zeros(total, dtype=torch.int32, device=device) if self._is_card else self._host
        self._hosts, views = _views(self._host, sizes), _views(self._memory, sizes)
        self._sent = torch.cuda.Event() if self._is_card else None  # type: ignore[no-untyped-call]
        self.hidden_states, self.cos, self.sin = (views[name] for name in ("hidden_states", "cos", "sin"))
        self.slots, self._long_tables = views["slots"], views["long_tables"]
        self.draws, self._host_draws = (
            None if shape.drawing is None else DrawInputs(of["settings"], of["numbers"]) for of in (views, self._hosts)
        )
        self.pieces = Pieces(views["extents"], views["tables"], views["rows"], shape.longest)

    def send(
        self,
        hidden_states: Tensor,
        rotation: Rotation,
        layout: StepLayout,
        slots: Sequence[int],
        draws: tuple[Draws, TokenTable] | None = None,
    ) -> None:
        """Bring the numbers of a step. hidden_states: (T, D) f32, on the host or on any card; rotation: on the host.
        draws: with the table that their penalties are counted in."""
        if self._sent is not None:
            self._sent.synchronize()  # what was sent last must have left the host's side
        host = self._hosts
        host["cos"].copy_(rotation.cos.squeeze(1))
        host["sin"].copy_(rotation.sin.squeeze(1))
        host["slots"].copy_(torch.tensor(slots, dtype=torch.int32))
        host["rows"].copy_(torch.tensor(layout.piece_of_row, dtype=torch.int32))
        for number, (first_row, length, past, blocks) in enumerate(layout.pieces):
            host["extents"][number] = torch.tensor((first_row, length, past), dtype=torch.int32)
            host["tables"][number, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        long_blocks = [block for long_run in layout.long_runs for block in long_run.run.blocks]
        host["long_tables"].copy_(torch.tensor(long_blocks, dtype=torch.int32))
        if draws is not None:
            assert self._host_draws is not None, "made for a shape that draws"
            self._host_draws.write(*draws)
        if hidden_states.device.type == "cpu":
            host["hidden_states"].copy_(hidden_states)
        if self._is_card:
            self._memory.copy_(self._host, non_blocking=True)
        if hidden_states.device.type != "cpu":
            self.hidden_states.copy_(hidden_states, non_blocking=True)
        if self._sent is not None:
            self._sent.record(torch.cuda.current_stream(self._memory.device))

    def table_of(self, long_run: LongRun) -> Tensor:
        """Return the blocks of a long run, (n,) int32, where the step is: asking the host would end what runs ahead."""
        return self._long_tables[long_run.first_block : long_run.first_block + len(long_run.run.blocks)]


def slots_of(runs: Sequence[TokenRun], block_size: int) -> list[int]:
    """Return where the tokens of a step go in the cache: block * block_size + place."""
    places = ((run, p) for run in runs for p in range(run.num_past, run.num_past + run.length))
    return [run.blocks[p // block_size] * block_size + p % block_size for run, p in places]


def _views(memory: Tensor, sizes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Cut memory (n,) int32 into one tensor a name."""
    views, first = {}, 0
    for name, size in sizes.items():
        part = memory[first : first + _count(size)].view(size)
        views[name] = part.view(torch.float32) if name in _FLOATS else part
        first += -(-_count(size) // _ALIGNMENT) * _ALIGNMENT
    return views


def _count(size: Sequence[int]) -> int:
    count = 1
    for length in size:
        count *= length
    return count


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
