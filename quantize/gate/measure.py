"""Everything the gate looks at, measured for all candidates in one pass over the source; and what of it is too much."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from qlocal.formats.base import Checkpoint
from qlocal.metrics import Evaluation, evaluate
from quantize.gate.limits import MIN_SOURCE_STOP, Limits
from quantize.gate.streaming import Machine, OnLayer, StreamedDecoder, run_layers
from quantize.gate.texts import Material

NUM_WORST = 5


@dataclass(frozen=True)
class Stops:
    """Mean probability of the stop token where an assistant's turn truly ends. count: such places."""

    count: int
    source: float
    candidate: float

    @property
    def can_tell(self) -> bool:
        """Whether BF16 itself stops there, so that a candidate that does not has lost it."""
        return self.count > 0 and self.source >= MIN_SOURCE_STOP


@dataclass(frozen=True)
class Measured:
    """One candidate against its source. linear_errors: ‖Wx - Qx‖² / ‖Wx‖² by module. seconds: of the whole pass."""

    evaluation: Evaluation
    linear_errors: dict[str, float]
    stops: Stops
    sentence: str
    dtype: str
    seconds: float

    @property
    def worst(self) -> list[tuple[str, float]]:
        """The linears with the largest errors, largest first; what is not a number comes before all."""
        ranked = sorted(self.linear_errors.items(), key=lambda item: -item[1] if item[1] == item[1] else -math.inf)
        return ranked[:NUM_WORST]

    def failures(self, limits: Limits) -> list[str]:
        """Return what lies outside the limits. Comparisons are written so that what is not a number fails."""
        found = self.evaluation
        assert found.mean_kl is not None and found.top1 is not None and found.ppl_source, "measured with a reference"
        failures = []
        if not found.mean_kl <= limits.max_kl:
            failures.append(f"mean KL {found.mean_kl:.5f} is above {limits.max_kl:g}")
        if not found.top1 >= limits.min_top1:
            failures.append(f"top-1 agreement {found.top1:.4f} is below {limits.min_top1:g}")
        ratio = found.ppl / found.ppl_source
        if limits.max_ppl_ratio is not None and not ratio <= limits.max_ppl_ratio:
            failures.append(f"perplexity is {ratio:.4f} of the source's, above {limits.max_ppl_ratio:g}")
        if self.stops.can_tell and not self.stops.candidate >= limits.min_stop_ratio * self.stops.source:
            failures.append(
                f"the stop token has probability {self.stops.candidate:.4f} at {self.stops.count} true ends of turns, "
                f"BF16 gives it {self.stops.source:.4f} (limit {limits.min_stop_ratio:g} of that)"
            )
        return failures + self._damaged(limits)

    def to_json(self, limits: Limits) -> dict[str, Any]:
        """Return the measures, the limits and the verdict; what is not a finite number becomes None."""
        failures = self.failures(limits)
        values = {
            "passed": not failures,
            "failures": failures,
            "limits": asdict(limits),
            "text": self.sentence,
            "dtype": self.dtype,
            "seconds": round(self.seconds, 2),
            **self.evaluation.to_json(),
            "stops": {**asdict(self.stops), "can_tell": self.stops.can_tell},
            "linear_errors": self.linear_errors,
        }
        return {name: _finite(value) for name, value in values.items()}

    def _damaged(self, limits: Limits) -> list[str]:
        above = [name for name, error in self.linear_errors.items() if not error <= limits.max_linear_error]
        if not above:
            return []
        return [
            f"{len(above)} of {len(self.linear_errors)} linears have an output error above {limits.max_linear_error:g}"
        ]


def measure(
    source: Checkpoint,
    candidates: Sequence[Checkpoint],
    material: Material,
    machine: Machine,
    on_layer: OnLayer | None = None,
) -> list[Measured]:
    """Return the distance of every candidate from `source` over the material, the source streamed once."""
    started = time.monotonic()
    windows = [chunk[:-1] for chunk in material.chunks]  # the last token is only predicted
    reference, streams = run_layers(source, candidates, windows, machine, on_layer)
    evaluations = [evaluate(stream.decoder, material.chunks, reference) for stream in streams]
    source_stop = _stop_probability(reference, material)
    stops = [Stops(len(material.ends), source_stop, _stop_probability(s.decoder, material)) for s in streams]
    seconds = time.monotonic() - started
    return [
        Measured(evaluation, stream.errors, stop, material.sentence, machine.dtype, seconds)
        for evaluation, stream, stop in zip(evaluations, streams, stops, strict=True)
    ]


@torch.inference_mode()
def _stop_probability(decoder: StreamedDecoder, material: Material) -> float:
    """Return the mean probability of stopping at the true ends of turns; 0 where there are none."""
    if not material.ends:
        return 0.0
    stop_ids = torch.tensor(material.stop_ids)
    total = 0.0
    for chunk, place in material.ends:
        probabilities = decoder.logits(decoder.states(chunk)[place - 1 : place]).cpu().softmax(-1)
        total += float(probabilities[0, stop_ids].sum())
    return total / len(material.ends)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
