"""Messages between the server and the engine's ranks: length-prefixed msgpack over a socket pair. Never pickle.

A frame is a u32 length (little endian) and a msgpack map with the key `type`. Both sides check every frame;
the engine checks ranges again although the server has validated the request. No torch here.
"""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

import msgpack

from qlocal.config import CARD_RESERVE, FROM_CONTEXT, PREFILL_CHUNK, STORED, Nodes
from qlocal.errors import EngineError
from qlocal.schema import HeldHead
from qlocal.schema import Sampling as Sampling

MAX_FRAME_BYTES = 64 << 20
HEADER = struct.Struct("<I")


MAX_GRAMMAR_CHARS = 1 << 20
GRAMMAR_LIMITS: dict[str, Any] = {"max_items_in_row": 20_000, "verbose_errors": False}
"""For llguidance, beside its own limits: rows as wide as an object of 5,000 optional properties makes them, and
messages that do not hold the whole schema. The guard and the engine compile alike."""
GRAMMAR_HEAD = '%llguidance {"no_forcing": true}\n'
"""Put before every grammar: where only one text can follow, the model still chooses the tokens that it is made of."""


@dataclass(frozen=True)
class Message:
    """Base of all messages; `type` on the wire is the lower-case class name."""

    kinds: ClassVar[dict[str, type[Message]]] = {}

    def __init_subclass__(cls) -> None:
        Message.kinds[cls.__name__.lower()] = cls


# From the server to the rank.


@dataclass(frozen=True)
class Load(Message):
    """The first message: load the checkpoint at `path`. `max_context` None takes what fits, up to the model's own.

    devices: `cpu`, `cuda:0`, ...; dtype: bfloat16 or float32; kernels: auto, reference or int8; head: stored, q8_0 or
    q6_k; kv: as `--kv` takes it, None for 16 bits; offload: auto, none, layers or experts. card_reserve: bytes of a
    card that are left alone. split: auto, layer or tensor. nodes: the machines that load it together, and which of
    them this is. draft: FROM_CONTEXT, NO_DRAFT, or the checkpoint of a small model that guesses too. sessions_folder:
    where conversations are kept, at most sessions_bytes in all; host_cache_bytes: of host memory for what a card's
    cache has no room for.
    """

    path: str
    devices: list[str]
    max_context: int | None = None
    slots: int = 8
    dtype: str = "bfloat16"
    kernels: str = "auto"
    threads: int | None = None
    max_memory: int | None = None
    head: str = STORED
    kv: str | None = None
    offload: str = "auto"
    prefill_chunk: int = PREFILL_CHUNK
    card_reserve: int = CARD_RESERVE
    split: str = "auto"
    nodes: Nodes | None = None
    draft: str = FROM_CONTEXT
    sessions_folder: str | None = None
    sessions_bytes: int = 0
    host_cache_bytes: int = 0


@dataclass(frozen=True)
class Submit(Message):
    """Generate for one sequence. `input_ids` is the whole prompt; `stop_ids` end it and are not sent as text.

    num_tokens: ids at or above it are never sampled (embedding rows without a token). scored_from: the place of the
    first prompt token whose log probability is wanted, 1 for all that have one; None for no prompt token's.
    keep_rows: a file that is made of the distributions of all scored tokens; against_rows: such a file, of another
    model, which they are held against.
    grammar: what the answer follows, in llguidance's Lark without its head; the vocabulary has been sent before.
    num_begun: so many tokens at the end of the prompt are the answer's beginning.
    """

    request_id: str
    input_ids: list[int]
    max_tokens: int
    stop_ids: list[int]
    sampling: Sampling
    num_tokens: int
    scored_from: int | None = None
    keep_rows: str | None = None
    against_rows: str | None = None
    grammar: str | None = None
    num_begun: int = 0


@dataclass(frozen=True)
class Vocabulary(Message):
    """The bytes of all tokens, one after another, and their lengths (u32 each), for requests with a grammar.
    special_ids: control tokens, which no text is made of. stop_ids: those of them that end an answer."""

    token_bytes: bytes
    token_lengths: bytes
    special_ids: list[int]
    stop_ids: list[int]


@dataclass(frozen=True)
class Cancel(Message):
    """Stop a sequence and free its slot and cache; answered by a `Finished` with reason `cancelled`."""

    request_id: str


@dataclass(frozen=True)
class Ping(Message):
    """Ask whether the step loop is alive; input_ids: and how much of such a prompt is in the cache."""

    nonce: int
    input_ids: list[int] | None = None


@dataclass(frozen=True)
class SaveSession(Message):
    """Keep the whole blocks of a prompt, which has been computed, on disk under a name; answered by `Session`, and to
    be sent again until all of it is there. model: its name, for people."""

    nonce: int
    name: str
    model: str
    input_ids: list[int]


@dataclass(frozen=True)
class FindSession(Message):
    """Ask for the tokens of a session that was saved with this model and these options; answered by `Session`."""

    nonce: int
    name: str


@dataclass(frozen=True)
class Shutdown(Message):
    """Finish nothing, free everything, exit 0."""


# Between the ranks of a tensor split: Join from the process that starts one, the others from rank 0 to all at once.


@dataclass(frozen=True)
class Join(Message):
    """The first message: become a rank of several that load the checkpoint at `path` by `plan` (Plan.to_json()).

    They meet in the file `meeting_path`, or at `host` and `port`; prefix: of the keys there. threads: of this rank.
    cpus: those it computes on, None for all.
    """

    path: str
    rank: int
    plan: dict[str, Any]
    kernels: str
    threads: int
    cpus: list[int] | None = None
    meeting_path: str | None = None
    host: str = ""
    port: int = 0
    prefix: str = "qlocal"


@dataclass(frozen=True)
class Forward(Message):
    """Run all layers. runs: (length, num_past, blocks...) of every sequence, whose tokens stand one after another."""

    input_ids: list[int]
    runs: list[list[int]]


@dataclass(frozen=True)
class Logits(Message):
    """Compute the head for rows of the last Forward."""

    rows: list[int]


@dataclass(frozen=True)
class CopyBlock(Message):
    """Copy the first tokens of one block of the cache to another."""

    source: int
    target: int
    num_tokens: int


@dataclass(frozen=True)
class ReadBlock(Message):
    """Give rank 0 what a block of the cache holds."""

    block: int


@dataclass(frozen=True)
class WriteBlock(Message):
    """Take from rank 0 what a block of the cache is to hold."""

    block: int


# From the rank to the server, and from other ranks to rank 0 (Progress, Failed).


@dataclass(frozen=True)
class Progress(Message):
    """Loading: `done` of `total` bytes; `stage` is words for the user; layers: loaded and in all, by device."""

    stage: str
    done: int
    total: int
    layers: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Ready(Message):
    """The model is loaded. `plan` is Plan.to_json(); `max_context` in tokens, `slots` sequences at once.

    held_head: what was done to the output head, if anything. used: bytes that loading took, by device; the cache of
    the host is not among them, since its memory is taken when it is written.
    """

    max_context: int
    slots: int
    plan: dict[str, Any]
    devices: list[str]
    loaded_bytes: int
    load_s: float
    held_head: HeldHead | None = None
    used: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenLogprobs(Message):
    """Log probability of a token and of the best ones, natural logarithm, before any sampling filter.

    kl: how far this model's distribution is from the reference's, over the whole vocabulary, where there is one:
    KL(reference || model); kl_reverse: KL(model || reference).
    """

    token_id: int
    logprob: float
    top_ids: list[int] = field(default_factory=list)
    top_logprobs: list[float] = field(default_factory=list)
    kl: float | None = None
    kl_reverse: float | None = None


@dataclass(frozen=True)
class Started(Message):
    """Prefill of a sequence is complete. `cached_tokens` of `prompt_tokens` were not computed again, `restored_tokens`
    of these came from host memory or disk."""

    request_id: str
    prompt_tokens: int
    cached_tokens: int
    prefill_s: float
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    restored_tokens: int = 0


@dataclass(frozen=True)
class Queued(Message):
    """A sequence waits for its turn, `ahead` others before it; sent when it begins to wait and when that changes."""

    request_id: str
    ahead: int


@dataclass(frozen=True)
class Reading(Message):
    """A part of a prompt has been read, and more is to come. done_tokens: in the cache, cached_tokens of them from the
    start. elapsed_s: since reading began."""

    request_id: str
    done_tokens: int
    prompt_tokens: int
    cached_tokens: int
    elapsed_s: float


@dataclass(frozen=True)
class Tokens(Message):
    """New tokens of one sequence, in order; `logprobs` is empty or one a token."""

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] = field(default_factory=list)


@dataclass(frozen=True)
class Finished(Message):
    """The end of a sequence. `reason`: stop (a stop id, or the grammar allows no more), length, cancelled, error or
    refused (the request's fault; both with `message`). drafted_tokens:
    how many were guessed and checked, accepted_tokens: how many of these were right."""

    request_id: str
    reason: str
    completion_tokens: int
    decode_s: float
    message: str | None = None
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True)
class Failed(Message):
    """The rank cannot go on (loading failed, CUDA error); it exits after this."""

    message: str
    hint: str | None = None


@dataclass(frozen=True)
class Pong(Message):
    """Answer to Ping, with what is in use now. cached_tokens: of the prompt that Ping has, None where it has none."""

    nonce: int
    running: int
    waiting: int
    free_blocks: int
    total_blocks: int
    cached_tokens: int | None = None


@dataclass(frozen=True)
class Session(Message):
    """Answer to SaveSession: saved_tokens of total_tokens are on disk. And to FindSession: its token_ids. error: why
    neither can be, and hint: what to do."""

    nonce: int
    saved_tokens: int = 0
    total_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    error: str | None = None
    hint: str | None = None


_NESTED: dict[str, Any] = {
    "sampling": Sampling,
    "logprobs": TokenLogprobs,
    "prompt_logprobs": TokenLogprobs,
    "held_head": HeldHead,
    "nodes": Nodes,
}


def encode(message: Message) -> bytes:
    """Return the whole frame, header included."""
    payload: bytes = msgpack.packb({"type": type(message).__name__.lower(), **asdict(message)}, use_bin_type=True)
    if len(payload) > MAX_FRAME_BYTES:
        raise EngineError(f"a message of {len(payload)} bytes is larger than the limit of {MAX_FRAME_BYTES}")
    return HEADER.pack(len(payload)) + payload


def frame_length(header: bytes) -> int:
    """Return the payload length that a 4-byte header announces, checked against the limit."""
    (length,) = HEADER.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise EngineError(f"a frame announces {length} bytes, the limit is {MAX_FRAME_BYTES}")
    return int(length)


def decode(payload: bytes) -> Message:
    """Return the message in a frame's payload; anything malformed is an EngineError."""
    try:
        values = msgpack.unpackb(payload, raw=False, strict_map_key=False)
        kind = Message.kinds[values.pop("type")]
        message: Message = _build(kind, values)
        return message
    except (KeyError, TypeError, ValueError, AttributeError, msgpack.UnpackException) as error:
        raise EngineError(f"malformed message between server and engine: {error!r:.300}") from error


def _build(kind: type[Any], values: dict[str, Any]) -> Any:
    known = {f.name for f in fields(kind)}
    if unknown := values.keys() - known:
        raise ValueError(f"{kind.__name__} has no fields {sorted(unknown)}")
    built = {name: _nested(name, value) for name, value in values.items()}
    return kind(**built)


def _nested(name: str, value: Any) -> Any:
    kind = _NESTED.get(name)
    if kind is None or value is None:
        return value
    return [_build(kind, v) for v in value] if isinstance(value, list) else _build(kind, value)
