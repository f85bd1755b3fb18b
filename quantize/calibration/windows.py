"""Calibration windows: (S, L) token ids from documents, by a rule that does not depend on chance."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from qlocal.errors import TemplateError, TemplateLimitError, UsageError
from qlocal.formats.base import Checkpoint
from qlocal.guard.client import MAX_TEXT_BYTES, Guard
from qlocal.tokenizer.tokenizer import Tokenizer
from quantize.calibration.documents import Document, joined_text, load_documents
from quantize.options import Calibration

ORDER_SEED = 20240521
MIN_TOKENS = 16


@dataclass(frozen=True)
class Windows:
    """ids: (S, L) int64. notes: what had to be decided and should be said. texts: what they were taken from."""

    ids: Tensor
    notes: tuple[str, ...] = ()
    texts: str = "the shipped texts"

    @property
    def sentence(self) -> str:
        """What was calibrated on."""
        count, length = self.ids.shape
        return f"Calibrated on {count} windows of {length} tokens of {self.texts}."

    @property
    def sha256(self) -> str:
        return hashlib.sha256(repr(tuple(self.ids.shape)).encode() + self.ids.numpy().tobytes()).hexdigest()


def windows_of(source: Checkpoint, calibration: Calibration) -> Windows:
    """Return the windows of a source, tokenized by its own tokenizer."""
    config = source.config
    with Guard() as guard:
        tokenizer = Tokenizer.load(source.tokenizer(), guard)
        return make_windows(calibration, tokenizer, config.max_position_embeddings, config.vocab_size)


def make_windows(calibration: Calibration, tokenizer: Tokenizer, max_positions: int, vocab_size: int) -> Windows:
    """Tokenize the calibration texts and cut them into windows.

    Raw: the first consecutive windows of the joined files. Else all documents in a fixed mixed order, conversations
    through the chat template, and windows taken evenly from the whole.
    """
    length = min(calibration.seq_len, max_positions)
    notes = [f"Windows of {length} tokens: the model has no more positions."] if length < calibration.seq_len else []
    if calibration.raw:
        ids = _encode_raw(calibration, tokenizer)
    else:
        ids, note = _encode_documents(load_documents(calibration.files), tokenizer)
        notes += note
    if max(ids, default=0) >= vocab_size:
        raise UsageError(f"the tokenizer gives id {max(ids)}, the model has {vocab_size} embeddings")
    windows = _cut(ids, length, calibration.num_samples, evenly=not calibration.raw)
    if len(windows) < calibration.num_samples:
        notes.append(
            f"The texts fill {len(windows)} of {calibration.num_samples} windows of {windows.shape[1]} tokens."
        )
    names = ", ".join(path.name for path in calibration.files)
    return Windows(windows, tuple(notes), names or Windows.texts)


def _encode_raw(calibration: Calibration, tokenizer: Tokenizer) -> list[int]:
    text = joined_text(calibration.files)
    data = text.encode("utf-8")
    if len(data) > MAX_TEXT_BYTES:  # far more than the windows take
        text = data[:MAX_TEXT_BYTES].decode("utf-8", "ignore")
    return tokenizer.encode(text)


def _encode_documents(documents: list[Document], tokenizer: Tokenizer) -> tuple[list[int], list[str]]:
    """Return the ids of all documents in a fixed mixed order, each begun as the model expects."""
    mixed = list(documents)
    random.Random(ORDER_SEED).shuffle(mixed)
    ids: list[int] = []
    plain_conversations = 0
    for document in mixed:
        if document.messages is None:
            ids += tokenizer.bos_ids() + tokenizer.encode(document.text or "")
            continue
        try:
            ids += tokenizer.encode_chat(document.messages, add_generation_prompt=False)
        except TemplateLimitError:  # of a busy machine, or of a bomb: no reason to calibrate on other texts in silence
            raise
        except TemplateError:  # no template, or one that takes no system message: the words are still worth seeing
            plain_conversations += 1
            text = "\n\n".join(message["content"] for message in document.messages)
            ids += tokenizer.bos_ids() + tokenizer.encode(text)
    if not plain_conversations:
        return ids, []
    return ids, [f"{plain_conversations} conversations are read as plain text: the chat template does not take them."]


def _cut(ids: list[int], length: int, count: int, *, evenly: bool) -> Tensor:
    if len(ids) < MIN_TOKENS:
        raise UsageError(f"the calibration texts have {len(ids)} tokens, at least {MIN_TOKENS} are needed")
    length = min(length, len(ids))
    windows = torch.tensor(ids[: len(ids) // length * length], dtype=torch.int64).view(-1, length)
    if len(windows) <= count or not evenly:
        return windows[:count].clone()
    chosen = [i * len(windows) // count for i in range(count)]
    return windows[chosen]
