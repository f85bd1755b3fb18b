"""Other variants of the model that is loaded: checkpoints at hand that speak of the same tokens."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qlocal.errors import QLocalError
from qlocal.formats.base import Checkpoint
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.server.shapes import Json
from qlocal.server.text import ModelText, OpenText
from qlocal.tokenizer.shared import require_same_tokens

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variant:
    """One checkpoint. num_bytes: of its weights. is_same_size: the loaded model's geometry, so only numbers differ."""

    name: str
    path: Path
    format: str
    num_bytes: int
    is_loaded: bool
    is_same_size: bool

    def to_json(self) -> Json:
        return {
            "name": self.name,
            "path": str(self.path),
            "format": self.format,
            "bytes": self.num_bytes,
            "is_loaded": self.is_loaded,
            "is_same_size": self.is_same_size,
        }


def find(model: ModelText, at_hand: Mapping[str, Path], open_text: OpenText) -> list[Variant]:
    """Return the checkpoints among `at_hand` whose tokens are the model's, its own first, then those of its geometry,
    large ones first. What cannot be opened is left out, with a log line."""
    loaded = open_checkpoint(model.path)
    found = {model.path.resolve(): _variant(model.name, loaded, loaded)}
    for name, path in at_hand.items():
        if path.resolve() in found:
            continue
        try:
            checkpoint = open_checkpoint(path)
            if checkpoint.config.model_type != loaded.config.model_type:
                continue
            require_same_tokens(model.tokenizer, open_text(name, path).tokenizer, model.name, name)
        except (QLocalError, OSError) as error:
            log.info("%s is no variant of %s: %s", name, model.name, error)
            continue
        found[path.resolve()] = _variant(name, checkpoint, loaded)
    return sorted(found.values(), key=lambda one: (not one.is_loaded, not one.is_same_size, -one.num_bytes))


def _variant(name: str, checkpoint: Checkpoint, loaded: Checkpoint) -> Variant:
    num_bytes = sum(tensor.num_bytes for tensor in checkpoint.tensors.values())
    is_same_size = _geometry(checkpoint) == _geometry(loaded)
    return Variant(name, checkpoint.path, checkpoint.format, num_bytes, checkpoint is loaded, is_same_size)


def _geometry(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Return what must be alike; the FFN may be padded, and vocabularies are to different sizes."""
    config = checkpoint.config
    return config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads
