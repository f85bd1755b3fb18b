"""What the server and its clients send each other beside OpenAI's own shapes. No pydantic, no torch.

The server fills these; the chat and `qlocal run` read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
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
    """How far loading is: `done` of `total` bytes; `stage` is words for the user. layers: by device, how many of its
    layers are loaded and how many it gets, where that is known."""

    stage: str
    done: int = 0
    total: int = 0
    layers: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LoadProgress:
        """Read it as an older or a newer server tells it."""
        return cls(values["stage"], values["done"], values["total"], values.get("layers") or {})


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 is greedy. Absent limits are None."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None
    """None: no logprobs; 0: of the chosen token alone; k: of the k best too."""


@dataclass(frozen=True)
class HeldHead:
    """An output head that was quantized at load. type: `q8_0` or `q6_k`. loss: ‖W - Q‖² / ‖W‖². Bytes of the head as
    it is stored, and as it is held."""

    type: str
    loss: float
    stored_bytes: int
    held_bytes: int

    @property
    def saved_bytes(self) -> int:
        return self.stored_bytes - self.held_bytes

    @property
    def sentence(self) -> str:
        sizes = f"{self.held_bytes / 1e6:.1f} MB instead of {self.stored_bytes / 1e6:.1f} MB"
        return f"the head is held as {self.type}: {sizes}, relative loss {self.loss:.2e}"


@dataclass(frozen=True)
class Template:
    """The chat template of the loaded model. sha256: of its text. known_as: whose it is, None for one that nobody has
    compared. is_new: unknown, and never loaded here before."""

    sha256: str
    known_as: str | None = None
    is_new: bool = False


@dataclass(frozen=True)
class Status:
    """The answer of GET /qlocal/status and every event of GET /qlocal/events.

    path: the checkpoint that `model` names.
    error: why the last load failed or why the engine was started again, else None.
    plan: known as soon as the headers are read. used: bytes that loading took, by device.
    held_head: what was done to the output head at load, None where it is held as it is stored.
    template: known when the model's text side is open; None also for a model without one.
    weights: a hash of what the model's files hold; None before it is known and where they cannot be read.
    sampling: the fields of a request that gives none, by name.
    in_flight: answers that are being written or wait for their turn, of all clients.
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
    held_head: HeldHead | None = None
    used: Mapping[str, int] | None = None
    in_flight: int = 0
    template: Template | None = None
    weights: str | None = None
    sampling: Mapping[str, Any] | None = None

    @property
    def memory(self) -> str | None:
        """What is planned and, once it is loaded, what of that is in use, in one sentence; None before it is known."""
        if self.plan is None or not self.plan.get("devices"):
            return None
        parts = [_memory_of(part, (self.used or {}).get(part["device"])) for part in self.plan["devices"]]
        types = {self.plan["key_type"]: None, self.plan["value_type"]: None}
        return f"Context {self.plan['max_context']:,} in {','.join(types)}: {'; '.join(parts)}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "state": self.state.value}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Status:
        """Read a status; fields that a newer server adds are ignored."""
        progress, head, template = (values.get(name) for name in ("progress", "held_head", "template"))
        return cls(
            state=EngineState(values["state"]),
            version=values["version"],
            pid=values["pid"],
            model=values.get("model"),
            path=values.get("path"),
            error=values.get("error"),
            max_context=values.get("max_context"),
            progress=LoadProgress.from_json(progress) if progress else None,
            plan=values.get("plan"),
            used=values.get("used"),
            in_flight=values.get("in_flight", 0),
            held_head=HeldHead(**{f.name: head[f.name] for f in fields(HeldHead)}) if head else None,
            template=Template(**{f.name: template[f.name] for f in fields(Template)}) if template else None,
            weights=values.get("weights"),
            sampling=values.get("sampling"),
        )


def _memory_of(part: Mapping[str, Any], used: int | None) -> str:
    """Return what a device of a plan is for. The host's cache is taken when it is written, so it is not in use yet."""
    weights = _size(part["weight_bytes"] + part["mapped_bytes"])
    cache, scratch = _size(part["cache_bytes"]), _size(part["scratch_bytes"])
    planned = f"{part['device']} {weights} weights, {cache} cache, {scratch} steps"
    return planned if used is None else f"{planned}, {_size(used)} in use"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


@dataclass(frozen=True)
class PromptProgress:
    """How far a long prompt has been read, as a comment in a stream before its first token. left_s: of reading."""

    done_tokens: int
    prompt_tokens: int
    tokens_per_s: float
    left_s: float

    @property
    def sentence(self) -> str:
        minutes, seconds = divmod(round(self.left_s), 60)
        left = f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
        return (
            f"reading the prompt: {self.done_tokens:,} of {self.prompt_tokens:,} tokens, "
            f"{self.tokens_per_s:.0f} tokens/s, {left} left"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class QueuePlace:
    """That an answer waits for its turn, as a comment in a stream before its first token. ahead: others before it."""

    ahead: int

    @property
    def sentence(self) -> str:
        return f"waiting: {self.ahead:,} before this" if self.ahead else "waiting: the next one"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class SpeedReport:
    """The extra object `qlocal` inside `usage`: what OpenAI's usage has no field for. restored_tokens: of the
    cached ones, how many came from host memory or disk. left_out_tokens: of a prompt that was cut. drafted_tokens:
    how many were guessed and checked, accepted_tokens: how many of these were right."""

    cached_tokens: int
    prefill_s: float
    decode_s: float
    tokens_per_s: float
    max_context: int
    restored_tokens: int = 0
    left_out_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
