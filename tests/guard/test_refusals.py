"""Refusals of the guard's parts, here in this process: in the helper nobody could see which line they came from."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qlocal.guard import (
    gguf_bpe,
    grammars,
    jobs,
    sentencepiece_proto,
    sentencepiece_vocabulary,
    templates,
    tokenizer_json,
)
from qlocal.guard.errors import JobError
from qlocal.guard.marks import Marks
from qlocal.guard.vocabulary import MAX_TOKEN_CHARS, AddedToken, Vocabulary
from tests.guard.test_vocabularies import MODEL, TINY, changed


def test_a_job_for_an_unknown_vocabulary_is_refused() -> None:
    lists = {"model": "bert", "pre": "", "tokens": ["a"], "token_types": [1]}
    with pytest.raises(JobError, match="is 'bert', supported are"):
        jobs.load({"job": "load", "key": "k", "kind": "gguf", "data": lists})
    with pytest.raises(JobError, match="has to be loaded again") as caught:
        jobs.encode({"job": "encode", "key": "nobody's", "text": "a", "with_control": False})
    assert caught.value.kind == "unknown_key"


def test_a_conversation_of_all_private_use_characters_is_refused() -> None:
    marks = Marks("".join(map(chr, range(0xF0000, 0xFFFFE))), None)
    with pytest.raises(JobError, match="uses all private-use characters"):
        marks.fresh()


def test_a_malformed_number_in_a_sentencepiece_model_is_refused() -> None:
    with pytest.raises(JobError, match="malformed number"):
        sentencepiece_proto.parse(b"\xff" * 20)
    with pytest.raises(JobError, match="wire type"):
        sentencepiece_proto.parse(b"\x0b")


@pytest.mark.parametrize("scores", [None, [], [float("inf")]])
def test_scores_that_do_not_belong_to_the_tokens_are_refused(scores: Any) -> None:
    with pytest.raises(JobError, match=r"tokenizer\.ggml\.scores"):
        sentencepiece_vocabulary.load_gguf(["a"], [1], scores, True)


def test_a_sentencepiece_model_that_its_library_refuses_is_refused() -> None:
    twice = MODEL.with_pieces([*MODEL.pieces, MODEL.pieces[0]])
    with pytest.raises(JobError, match="is refused by its library"):
        sentencepiece_vocabulary.load(twice.encode(), {})


REFUSED_FILES: dict[str, tuple[bytes, str]] = {
    "too large": (b" " * (tokenizer_json.MAX_FILE_BYTES + 1), "the limit is"),
    "a replacement that grows": (
        changed("normalizer", {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}),
        "makes the text longer",
    ),
    "a long token": (changed("model.vocab", {"a" * (MAX_TOKEN_CHARS + 1): 0}), "the limit is 4096"),
}


@pytest.mark.parametrize("case", REFUSED_FILES)
def test_a_malformed_tokenizer_is_refused_here_too(case: str) -> None:
    data, words = REFUSED_FILES[case]
    with pytest.raises(JobError, match=words):
        tokenizer_json.load(data)


def test_half_a_surrogate_pair_in_a_text_is_refused() -> None:
    with pytest.raises(JobError, match="half of a surrogate pair"):
        tokenizer_json.load(json.dumps(TINY).encode()).encode_plain("a\ud800")


def test_tokens_of_a_gguf_file_that_are_no_texts_are_refused() -> None:
    with pytest.raises(JobError, match=r"id 0 is given to two"):
        gguf_bpe.build(gguf_bpe.BpeSpec({"a": 0, "b": 0}, [], (), True))


REFUSED_TEMPLATES = {
    "{{ '": "syntax error",
    "{{ ''.__class__.__mro__ }}": "something forbidden",
    "{{ raise_exception('no') }}": "refuses this conversation: no",
    "{{ 1 // 0 }}": "failed: ZeroDivisionError",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "nested too deeply",
    "{{ 2 ** 99999 }}": "a number of more than 4096 bits",
    "{{ 'a' * 99999999 }}": "a value of 99999999 items",
    "{{ 'a' | center(99999) }}": "a width of 99999",
    "{{ range(999999) }}": "a range of 999999",
    "{{ 'a' * 9999999 ~ 'a' * 9999999 }}": "rendered 19999998 characters",
    "x" * (templates.MAX_TEMPLATE_CHARS + 1): "it has 1048577 characters",
}


@pytest.mark.parametrize("template", REFUSED_TEMPLATES, ids=lambda t: t[:40])
def test_a_template_that_is_refused_says_why(template: str) -> None:
    with pytest.raises(JobError, match=REFUSED_TEMPLATES[template]) as caught:
        templates.render(template, {})
    assert caught.value.kind == "template" and "\n" not in caught.value.message


class OnlyControl:
    """An encoder whose vocabulary makes a control token of every text."""

    def encode(self, text: str, is_first: bool) -> list[int]:
        del text, is_first
        return [0]


def test_a_vocabulary_that_makes_control_tokens_of_text_is_refused() -> None:
    vocabulary = Vocabulary(OnlyControl(), (AddedToken(0, "<s>", is_special=True),), [b"<s>"])
    with pytest.raises(JobError, match="control tokens out of plain text"):
        vocabulary.encode_plain("a")


def test_a_text_on_which_the_library_fails_is_refused() -> None:
    vocabulary = tokenizer_json.load(
        json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "nobody"}}).encode()
    )
    assert vocabulary.encode_plain("a") == [0]
    with pytest.raises(JobError, match="the tokenizer fails on this text: Unk token"):
        vocabulary.encode_plain("b")


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ('start: "a', "grammar|string|lex|parse"),
        ('start: %json {"$ref": "#"}', "it allows no answer at all"),
    ],
)
def test_a_grammar_that_cannot_be_followed_is_refused(grammar: str, words: str) -> None:
    with pytest.raises(JobError, match=words) as caught:
        grammars.check(grammar)
    assert caught.value.kind == "grammar" and "\n" not in caught.value.message
