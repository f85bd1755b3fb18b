"""What the server and its clients send each other beside OpenAI's own shapes. No pydantic, no torch.

The server fills these; the chat and `qlocal run` read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any


class EngineState(str, Enum):
    """Where the server's engine stands."""

    EMPTY = "empty"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True)
class LoadProgress:
    """How far loading is: `done` of `total` bytes; `stage` is words for the user."""

    stage: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Status:
    """The answer of GET /qlocal/status and every event of GET /qlocal/events.

    path: the checkpoint that `model` names.
    error: why the last load failed or why the engine was started again, else None.
    """

    state: EngineState
    version: str
    pid: int
    model: str | None = None
    path: str | None = None
    error: str | None = None
    max_context: int | None = None
    progress: LoadProgress | None = None
    plan: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "state": self.state.value}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Status:
        """Read a status; fields that a newer server adds are ignored."""
        progress = values.get("progress")
        return cls(
            state=EngineState(values["state"]),
            version=values["version"],
            pid=values["pid"],
            model=values.get("model"),
            path=values.get("path"),
            error=values.get("error"),
            max_context=values.get("max_context"),
            progress=LoadProgress(progress["stage"], progress["done"], progress["total"]) if progress else None,
            plan=values.get("plan"),
        )


@dataclass(frozen=True)
class SpeedReport:
    """The extra object `qlocal` inside `usage`: what OpenAI's usage has no field for."""

    cached_tokens: int
    prefill_s: float
    decode_s: float
    tokens_per_s: float
    max_context: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
