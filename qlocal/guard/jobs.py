"""The jobs of the guard: load a vocabulary, encode text, render a template, encode a conversation, check a grammar,
read a document."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qlocal.guard.errors import JobError

if TYPE_CHECKING:
    from qlocal.guard.chat import ChatEncoder
    from qlocal.guard.vocabulary import Vocabulary

Job = dict[str, Any]
MAX_VOCABULARIES = 2
_loaded: OrderedDict[str, ChatEncoder] = OrderedDict()


def import_for(job: Job) -> None:
    """Import what the job needs, while files may still be opened."""
    if job["job"] == "ready":
        return
    if job["job"] == "check_grammar":
        from qlocal.guard import grammars

        del grammars
        return
    if job["job"] == "document":
        _import_reader(job["kind"])
        return
    if job["job"] != "load":
        from qlocal.guard import templates

        templates.compile_once()
        return
    from qlocal.guard import chat, gguf_bpe, sentencepiece_vocabulary, tokenizer_json

    del chat, gguf_bpe, sentencepiece_vocabulary, tokenizer_json


def _import_reader(kind: str) -> None:
    from qlocal.guard import documents

    documents.import_reader(kind)


def document(job: Job) -> dict[str, Any]:
    """Return the text of a PDF or .docx file, and what of it is not seen."""
    from qlocal.guard import documents

    return documents.read(job["kind"], job["data"])


def load(job: Job) -> dict[str, Any]:
    """Load the vocabulary in `job` and keep it under `key`; return its tables."""
    from qlocal.guard.chat import ChatEncoder

    while len(_loaded) >= MAX_VOCABULARIES:
        _loaded.popitem(last=False)
    vocabulary = _load_vocabulary(job["kind"], job["data"])
    _loaded[job["key"]] = ChatEncoder(vocabulary)
    return vocabulary.describe()


def _load_vocabulary(kind: str, data: Job) -> Vocabulary:
    from qlocal.guard import gguf_bpe, sentencepiece_vocabulary, tokenizer_json

    if kind == "tokenizer_json":
        return tokenizer_json.load(data["bytes"])
    if kind == "sentencepiece":
        return sentencepiece_vocabulary.load(data["bytes"], data["added_tokens"])
    tokens, token_types = data["tokens"], data["token_types"]
    if data["model"] == "gpt2":
        return gguf_bpe.load(data["pre"], tokens, token_types, data["merges"])
    if data["model"] == "llama":
        return sentencepiece_vocabulary.load_gguf(tokens, token_types, data["scores"], data["add_space_prefix"])
    raise JobError("vocabulary", f"'tokenizer.ggml.model' is {data['model'][:60]!r}, supported are 'gpt2' and 'llama'")


def encode(job: Job) -> bytes:
    """Return the ids of plain text, or of a text that may hold control tokens (`with_control`)."""
    encoder = _encoder(job["key"])
    text = job["text"]
    return _packed(encoder.encode_marked_up(text) if job["with_control"] else encoder.vocabulary.encode_plain(text))


def encode_chat(job: Job) -> bytes:
    return _packed(_encoder(job["key"]).encode_chat(job["template"], job["conversation"], job["constants"]))


def encode_answer(job: Job) -> bytes:
    return _packed(_encoder(job["key"]).encode_answer(job["text"]))


def render(job: Job) -> str:
    from qlocal.guard import templates

    return templates.render(job["template"], job["variables"])


def end_of_turn(job: Job) -> int | None:
    return _encoder(job["key"]).end_of_turn(job["template"], job["constants"])


def check_grammar(job: Job) -> bool:
    from qlocal.guard import grammars

    grammars.check(job["grammar"])
    return True


def _encoder(key: str) -> ChatEncoder:
    if key not in _loaded:
        raise JobError("unknown_key", "the vocabulary has to be loaded again")
    _loaded.move_to_end(key)
    return _loaded[key]


def _packed(ids: list[int]) -> bytes:
    return array("I", ids).tobytes()


JOBS: dict[str, Callable[[Job], Any]] = {
    "ready": lambda _: True,
    "load": load,
    "encode": encode,
    "encode_chat": encode_chat,
    "encode_answer": encode_answer,
    "render": render,
    "end_of_turn": end_of_turn,
    "check_grammar": check_grammar,
    "document": document,
}
