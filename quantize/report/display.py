"""What the user sees while it runs: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text


@dataclass(frozen=True)
class DoneUnit:
    """A finished unit. num_done: how many of `count` are now, those of an earlier run included; losses: by target and
    module; parameters: made in these `seconds`."""

    unit: str
    num_done: int
    count: int
    losses: Mapping[str, Mapping[str, float]]
    seconds: float
    parameters: int

    @property
    def speed(self) -> str:
        return f"{self.parameters / max(self.seconds, 1e-9) / 1e6:.1f} M weights/s"


class Display(Protocol):
    """Events of a quantization, in order."""

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def measured_layer(self, done: int, count: int) -> None:
        """What tensors are worth has been measured through that many layers."""

    def begin_unit(self, unit: str) -> None:
        """A layer (or the head) begins."""

    def linear_done(self, target: str, module: str, loss: float) -> None:
        """One linear has been quantized."""

    def end_unit(self, done: DoneUnit) -> None:
        """A unit is on the disk. Units may end in another order than they begin in."""

    def peer_line(self, text: str) -> None:
        """This is the last line of what the package of `--backend` has said."""

    def gate_layer(self, done: int, count: int) -> None:
        """The gate has run that many layers of the source and of every result."""


class PlainDisplay:
    """A line a unit, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._clock = _Clock()

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def measured_layer(self, done: int, count: int) -> None:
        """A log is told what came of it."""

    def begin_unit(self, unit: str) -> None:
        self._clock.begin()

    def linear_done(self, target: str, module: str, loss: float) -> None:
        """A log is told of whole units."""

    def end_unit(self, done: DoneUnit) -> None:
        self._clock.end(done)
        losses = ", ".join(f"{t} loss {sum(v.values()) / len(v):.5f}" for t, v in done.losses.items() if v)
        parts = filter(None, [losses, f"{done.seconds:.1f} s", done.speed, self._clock.left()])
        self.say(f"{_unit_name(done.unit)} ({done.num_done}/{done.count}): {', '.join(parts)}")

    def peer_line(self, text: str) -> None:
        """It has a log of its own."""

    def gate_layer(self, done: int, count: int) -> None:
        """A log is told when the gate is over, not after every layer."""


class LiveDisplay(PlainDisplay):
    """One line that changes: layer, last loss, speed, time left; notes scroll above it."""

    def __init__(self, console: Console) -> None:
        super().__init__(sys.stderr)
        self._console = console
        self._unit = ""
        self._live = Live(Text(""), console=console, refresh_per_second=4, transient=True)
        self._last = ""
        self._speed = ""

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def begin_unit(self, unit: str) -> None:
        super().begin_unit(unit)
        self._unit = _unit_name(unit)
        self._last = ""
        self._draw()

    def linear_done(self, target: str, module: str, loss: float) -> None:
        self._last = f"{target} {module.removeprefix('model.layers.')} loss {loss:.5f}"
        self._draw()

    def end_unit(self, done: DoneUnit) -> None:
        self._speed = done.speed
        super().end_unit(done)

    def measured_layer(self, done: int, count: int) -> None:
        self._show(f"measuring tensors: layer {done} of {count}")

    def gate_layer(self, done: int, count: int) -> None:
        self._show(f"gate: layer {done} of {count}")

    def _draw(self) -> None:
        parts = filter(None, [self._unit, self._last, self._speed, self._clock.left()])
        self._show("  ".join(parts))

    def _show(self, text: str) -> None:
        self._live.update(Text(text, no_wrap=True, overflow="ellipsis"))


def open_display() -> LiveDisplay | PlainDisplay:
    """Return the live display when standard error is a terminal, else the plain one."""
    console = Console(stderr=True)
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(sys.stderr)


class _Clock:
    """Time left, from the units finished in this run, however many are worked on at once; the head counts as one
    layer."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._done = 0
        self._remaining = 0

    def begin(self) -> None:
        self._started = self._started or time.monotonic()

    def end(self, done: DoneUnit) -> None:
        self._done += 1
        self._remaining = done.count - done.num_done

    def left(self) -> str:
        if self._started is None or not self._remaining:
            return ""
        seconds = round((time.monotonic() - self._started) / self._done * self._remaining)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"


def _unit_name(unit: str) -> str:
    return f"layer {unit}" if unit.isdigit() else unit
