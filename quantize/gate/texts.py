"""What the gate lets a model predict: texts that calibration never sees, and conversations with their ends of turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qlocal.errors import TemplateError, TemplateLimitError, UsageError
from qlocal.formats.base import Checkpoint
from qlocal.guard.client import Guard
from qlocal.metrics import take_chunks
from qlocal.tokenizer.tokenizer import Tokenizer
from quantize.calibration.documents import Messages, load_documents

HELD_OUT = Path(__file__).parent / "texts"


@dataclass(frozen=True)
class Reading:
    """How much is read. files: plain text, and .jsonl with conversations; the held-out texts when there are none.

    num_chunks windows of `length` tokens from the plain texts; conversations are read as far as `length` goes.
    """

    files: tuple[Path, ...] = ()
    num_chunks: int = 8
    length: int = 256


@dataclass(frozen=True)
class Material:
    """Token ids to predict. ends: (chunk, position) of every token that ends an assistant's turn.

    stop_ids: any of them ends a turn. sentence: what this is, for the report.
    """

    chunks: list[list[int]]
    ends: list[tuple[int, int]]
    stop_ids: tuple[int, ...]
    sentence: str


def read_material(source: Checkpoint, reading: Reading) -> Material:
    """Tokenize what is to be predicted, as the source does. UsageError for too little text or an odd size."""
    length = min(reading.length, source.config.max_position_embeddings)
    if reading.num_chunks < 1 or length < 2:
        raise UsageError(f"--chunks {reading.num_chunks} --length {reading.length}: at least 1 and 2 are needed")
    documents = load_documents(reading.files or _held_out())
    with Guard() as guard:
        tokenizer = Tokenizer.load(source.tokenizer(), guard)
        texts = [tokenizer.bos_ids() + tokenizer.encode(d.text) for d in documents if d.text is not None]
        chunks = _windows(texts, reading, length)
        stop_ids = tokenizer.end_of_turn_ids | set(source.generation_defaults().stop_ids)
        ends: list[tuple[int, int]] = []
        for messages in (d.messages for d in documents if d.messages is not None):
            ids, places = _conversation(tokenizer, messages, stop_ids, length)
            if len(ids) >= 2:
                ends += [(len(chunks), place) for place in places]
                chunks.append(ids)
    if not chunks:
        raise UsageError("there is nothing to predict: no plain text, and no chat template for the conversations")
    return Material(chunks, ends, tuple(sorted(stop_ids)), _sentence(reading, chunks))


def _held_out() -> tuple[Path, ...]:
    return tuple(sorted(p for p in HELD_OUT.iterdir() if p.suffix in (".txt", ".jsonl")))


def _windows(texts: list[list[int]], reading: Reading, length: int) -> list[list[int]]:
    """Return windows taken evenly from all texts behind each other; as many as there are of the held-out ones."""
    joined = [token for ids in texts for token in ids]
    if not joined:
        return []
    if reading.files:
        return take_chunks([joined], reading.num_chunks, length)
    length = min(length, len(joined))
    return take_chunks([joined], min(reading.num_chunks, len(joined) // length), length)


def _conversation(
    tokenizer: Tokenizer, messages: Messages, stop_ids: frozenset[int] | set[int], length: int
) -> tuple[list[int], list[int]]:
    """Return the ids of a conversation, and where its answers end; nothing where the template does not take it."""
    try:
        ids = tokenizer.encode_chat(messages, add_generation_prompt=False)[:length]
        prefixes = [
            tokenizer.encode_chat(messages[:index], add_generation_prompt=True)
            for index, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
    except TemplateLimitError:
        raise
    except TemplateError:
        return [], []
    places = [_first_stop(ids, prefix, stop_ids) for prefix in prefixes]
    return ids, [place for place in places if place is not None]


def _first_stop(ids: Sequence[int], prefix: list[int], stop_ids: frozenset[int] | set[int]) -> int | None:
    """Return where the answer after `prefix` stops, if it does within `ids` and the template only appends."""
    if list(ids[: len(prefix)]) != prefix:
        return None
    return next((place for place in range(len(prefix), len(ids)) if ids[place] in stop_ids), None)


def _sentence(reading: Reading, chunks: list[list[int]]) -> str:
    what = ", ".join(path.name for path in reading.files) if reading.files else "texts held out from calibration"
    return f"{sum(map(len, chunks))} tokens in {len(chunks)} windows and conversations of {what}."
