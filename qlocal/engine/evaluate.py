"""`qlocal eval`: perplexity of a model on texts, and its distance to a reference model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qlocal.config import STORED
from qlocal.errors import ConfigError, UsageError
from qlocal.formats.base import Checkpoint
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.guard.client import Guard
from qlocal.kernels import dispatch
from qlocal.layers.decoder import Decoder
from qlocal.layers.kv_conditioning import storage_for
from qlocal.layers.loader import load_model
from qlocal.metrics import Attention, OnChunk, evaluate, over_cache, take_chunks, without_cache
from qlocal.plan import Plan, make_plan
from qlocal.schema import HeldHead
from qlocal.tokenizer import Tokenizer


@dataclass(frozen=True)
class Measured:
    """What is measured and how. float32 leaves the weights as the only difference between two models. head: how the
    model's own output head is held; the reference's is as stored. kv: the types of a cache that
    the model reads its keys and values from, as `--kv` takes them; None is without a cache."""

    texts: Sequence[Path]
    num_chunks: int = 16
    length: int = 512
    dtype: str = "float32"
    devices: Sequence[str] = ("cpu",)
    kernels: str = "auto"
    threads: int | None = None
    head: str = STORED
    kv: str | None = None


def run(
    model: Path, measured: Measured, reference: Path | None = None, on_chunk: OnChunk | None = None
) -> dict[str, Any]:
    """Return the measures as JSON values. Tokens are those of the reference, or of the model without one.

    Raises a QLocalError for files that cannot be read, texts that are too short, vocabularies that differ.
    """
    if measured.length < 2:
        raise UsageError(f"chunks of {measured.length} tokens predict nothing", hint="Use at least 2.")
    if measured.threads is not None:
        dispatch.set_threads(measured.threads)
    checkpoint = open_checkpoint(model)
    source = None if reference is None else open_checkpoint(reference)
    if source is not None:
        _check_same_vocabulary(checkpoint, source)
    chunks = take_chunks(tokens_of(source or checkpoint, measured.texts), measured.num_chunks, measured.length)
    plan = _plan(checkpoint, measured, measured.head, measured.kv)
    decoder = _load(checkpoint, plan, measured)
    attention: Attention = without_cache
    if measured.kv is not None:
        attention = over_cache(storage_for(decoder, plan), plan.block_size)
    other = None if source is None else _load(source, _plan(source, measured, STORED), measured)
    result = evaluate(decoder, chunks, other, on_chunk, attention)
    return {
        "model": model.name,
        "reference": None if reference is None else reference.name,
        "texts": [text.name for text in measured.texts],
        "length": measured.length,
        "dtype": measured.dtype,
        "bytes": sum(stored.num_bytes for stored in checkpoint.tensors.values()),
        **({} if measured.kv is None else {"key_type": plan.key_type, "value_type": plan.value_type}),
        **_head_measures(decoder.held_head),
        **result.to_json(),
    }


def _head_measures(head: HeldHead | None) -> dict[str, Any]:
    if head is None:
        return {"head": STORED}
    return {"head": head.type, "head_loss": head.loss, "head_saved_bytes": head.saved_bytes}


def _plan(checkpoint: Checkpoint, measured: Measured, head: str, kv: str | None = None) -> Plan:
    return make_plan(checkpoint, measured.devices, measured.length, slots=1, dtype=measured.dtype, head=head, kv=kv)


def _load(checkpoint: Checkpoint, plan: Plan, measured: Measured) -> Decoder:
    with torch.inference_mode():
        return load_model(checkpoint, plan, measured.kernels)


def tokens_of(checkpoint: Checkpoint, texts: Sequence[Path]) -> list[list[int]]:
    """Return every text in the checkpoint's tokens. UsageError for a file that is no text."""
    with Guard() as guard:
        tokenizer = Tokenizer.load(checkpoint.tokenizer(), guard)
        return [tokenizer.encode(_read(text)) for text in texts]


def _read(text: Path) -> str:
    try:
        return text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{text} cannot be read as UTF-8 text: {error}") from error


def _check_same_vocabulary(checkpoint: Checkpoint, source: Checkpoint) -> None:
    size, size_source = checkpoint.config.vocab_size, source.config.vocab_size
    if size != size_source:
        raise ConfigError(
            f"{checkpoint.path.name} has a vocabulary of {size} tokens, {source.path.name} one of {size_source}",
            hint="Distances are defined between models of one vocabulary.",
        )
