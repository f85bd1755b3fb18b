"""What the user sees while it runs: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text


class Display(Protocol):
    """Events of a quantization, in order."""

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def begin_unit(self, unit: str, index: int, count: int) -> None:
        """A layer (or the head) begins; `index` counts from 0, those of an earlier run included."""

    def linear_done(self, target: str, module: str, loss: float) -> None:
        """One linear has been quantized."""

    def end_unit(self, seconds: float, parameters: int) -> None:
        """The unit is on the disk."""

    def gate_layer(self, done: int, count: int) -> None:
        """The gate has run that many layers of the source and of every result."""


class PlainDisplay:
    """A line a unit, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._clock = _Clock()
        self._unit = ""
        self._losses: dict[str, list[float]] = {}

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def begin_unit(self, unit: str, index: int, count: int) -> None:
        self._clock.begin(index, count)
        self._unit = f"{_unit_name(unit)} ({index + 1}/{count})"
        self._losses = {}

    def linear_done(self, target: str, module: str, loss: float) -> None:
        self._losses.setdefault(target, []).append(loss)

    def end_unit(self, seconds: float, parameters: int) -> None:
        self._clock.end(seconds)
        losses = ", ".join(f"{t} loss {sum(v) / len(v):.5f}" for t, v in self._losses.items())
        speed = f"{parameters / max(seconds, 1e-9) / 1e6:.1f} M weights/s"
        self.say(f"{self._unit}: {', '.join(filter(None, [losses, f'{seconds:.1f} s', speed, self._clock.left()]))}")

    def gate_layer(self, done: int, count: int) -> None:
        """A log is told when the gate is over, not after every layer."""


class LiveDisplay(PlainDisplay):
    """One line that changes: layer, last loss, speed, time left; notes scroll above it."""

    def __init__(self, console: Console) -> None:
        super().__init__(sys.stderr)
        self._console = console
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

    def begin_unit(self, unit: str, index: int, count: int) -> None:
        super().begin_unit(unit, index, count)
        self._last = ""
        self._draw()

    def linear_done(self, target: str, module: str, loss: float) -> None:
        super().linear_done(target, module, loss)
        self._last = f"{target} {module.removeprefix('model.layers.')} loss {loss:.5f}"
        self._draw()

    def end_unit(self, seconds: float, parameters: int) -> None:
        self._speed = f"{parameters / max(seconds, 1e-9) / 1e6:.1f} M weights/s"
        super().end_unit(seconds, parameters)

    def gate_layer(self, done: int, count: int) -> None:
        self._live.update(Text(f"gate: layer {done} of {count}", no_wrap=True, overflow="ellipsis"))

    def _draw(self) -> None:
        parts = filter(None, [self._unit, self._last, self._speed, self._clock.left()])
        self._live.update(Text("  ".join(parts), no_wrap=True, overflow="ellipsis"))


def open_display() -> LiveDisplay | PlainDisplay:
    """Return the live display when standard error is a terminal, else the plain one."""
    console = Console(stderr=True)
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(sys.stderr)


class _Clock:
    """Time left, from the units finished in this run; the head counts as one layer."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._done = 0
        self._seconds = 0.0
        self._remaining = 0

    def begin(self, index: int, count: int) -> None:
        self._remaining = count - index

    def end(self, seconds: float) -> None:
        self._done += 1
        self._seconds += seconds
        self._remaining -= 1

    def left(self) -> str:
        if not self._done or not self._remaining:
            return ""
        seconds = round(self._seconds / self._done * self._remaining)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"


def _unit_name(unit: str) -> str:
    return f"layer {unit}" if unit.isdigit() else unit
