"""Opens the text side of a checkpoint: its headers here, its vocabulary and template in the guard."""

from __future__ import annotations

from pathlib import Path

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.guard.client import Guard
from qlocal.schema import Template
from qlocal.server.text import ModelText, OpenText
from qlocal.tokenizer import Tokenizer
from qlocal.tokenizer.known_templates import known_as, sha256


def text_opener(guard: Guard) -> OpenText:
    """Return the function that opens a checkpoint's headers and its tokenizer in `guard`."""

    def open_text(name: str, path: Path) -> ModelText:
        checkpoint = open_checkpoint(path)
        data = checkpoint.tokenizer()
        tokenizer = Tokenizer.load(data, guard)
        defaults = checkpoint.generation_defaults()
        stops = {*checkpoint.config.eos_token_ids, *defaults.stop_ids, *tokenizer.end_of_turn_ids}
        text = data.chat_template
        template = None if text is None else Template(sha256(text), known_as(text))
        return ModelText(name, path, tokenizer, tuple(sorted(stops)), defaults, template, checkpoint.files)

    return open_text
