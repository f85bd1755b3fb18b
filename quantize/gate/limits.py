"""What a result may lose before the gate fails, and the options that say so. No torch."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

from qlocal.errors import UsageError

MIN_SOURCE_STOP = 0.05
"""Where BF16 itself gives the stop token less than this at the ends of turns, nothing can be held against it."""


@dataclass(frozen=True)
class Limits:
    """The gate. They tell damage from rounding on any model; who knows his own model sets them tighter.

    max_kl: mean KL in nats a token. max_linear_error: ‖Wx - Qx‖² / ‖Wx‖² of the worst linear. min_stop_ratio: mean
    probability of the stop token at the true ends of turns, relative to BF16's. min_top1: share of tokens with the same
    favourite. max_ppl_ratio: perplexity relative to the source's, or None.
    """

    max_kl: float = 0.5
    max_linear_error: float = 0.25
    min_stop_ratio: float = 0.5
    min_top1: float = 0.0
    max_ppl_ratio: float | None = None

    @classmethod
    def of(cls, parsed: argparse.Namespace) -> Limits:
        """Return the limits that were parsed; UsageError for one below 0 or not a number."""
        values = {field.name: getattr(parsed, field.name) for field in fields(cls)}
        for name, value in values.items():
            if value is not None and not value >= 0:
                raise UsageError(f"--{name.replace('_', '-')} is {value}, expected a number from 0")
        return cls(**values)


def add_limit_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for every limit."""
    add, normal = parser.add_argument, Limits()
    add("--max-kl", type=float, default=normal.max_kl, help="gate: largest mean KL in nats a token")
    add(
        "--max-linear-error", type=float, default=normal.max_linear_error, help="gate: largest output error of a linear"
    )
    add(
        "--min-stop-ratio",
        type=float,
        default=normal.min_stop_ratio,
        help="gate: stop token at ends of turns, of BF16's",
    )
    add("--min-top1", type=float, default=normal.min_top1, help="gate: smallest share of equal top tokens, 0 to 1")
    add("--max-ppl-ratio", type=float, default=normal.max_ppl_ratio, help="gate: largest perplexity, of the source's")
