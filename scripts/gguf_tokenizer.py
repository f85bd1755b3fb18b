"""A GGUF file's byte-level BPE vocabulary as the tokenizer.json and tokenizer_config.json of a Hugging Face folder."""

from __future__ import annotations

from qlocal.errors import UnsupportedError
from qlocal.formats.base import GgufVocabulary
from qlocal.guard.gguf_bpe import added_tokens
from qlocal.guard.split_rules import IGNORES_MERGES, NORMALIZES_NFC, PRE_TOKENIZERS


def tokenizer_json(vocabulary: GgufVocabulary) -> dict[str, object]:
    """Return the content of tokenizer.json. UnsupportedError for other kinds of vocabulary than `gpt2`."""
    if vocabulary.model != "gpt2" or vocabulary.pre not in PRE_TOKENIZERS or vocabulary.merges is None:
        raise UnsupportedError(f"a vocabulary of kind {vocabulary.model}/{vocabulary.pre} cannot be written as BPE")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(vocabulary),
        "normalizer": {"type": "NFC"} if vocabulary.pre in NORMALIZES_NFC else None,
        "pre_tokenizer": PRE_TOKENIZERS[vocabulary.pre],
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": vocabulary.pre in IGNORES_MERGES,
            "vocab": {text: token_id for token_id, text in enumerate(vocabulary.tokens)},
            "merges": vocabulary.merges,
        },
    }


def tokenizer_config(vocabulary: GgufVocabulary, chat_template: str | None) -> dict[str, object]:
    """Return the content of tokenizer_config.json."""

    def text(token_id: int | None) -> str | None:
        return None if token_id is None else vocabulary.tokens[token_id]

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": text(vocabulary.bos_token_id),
        "eos_token": text(vocabulary.eos_token_id),
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template,
    }


def _added(vocabulary: GgufVocabulary) -> list[dict[str, object]]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": token.id, "content": token.text, **plain, "special": token.is_special}
        for token in added_tokens(vocabulary.tokens, vocabulary.token_types)
    ]
