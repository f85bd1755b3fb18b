"""Vocabulary files of strangers: what is accepted, what is refused, and how it is said."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from qlocal.errors import TokenizerError
from qlocal.guard import bpe, gguf_bpe, sentencepiece_proto, sentencepiece_vocabulary, tokenizer_json
from qlocal.guard.bpe import byte_alphabet
from qlocal.guard.chat import ChatEncoder
from qlocal.guard.client import Guard
from qlocal.guard.errors import JobError
from qlocal.guard.vocabulary import AddedToken, Matcher
from tests import tiny

TINY: dict[str, Any] = json.loads(tiny.tiny_tokenizer().to_str())


def changed(path: str, value: Any) -> bytes:
    raw = copy.deepcopy(TINY)
    *parents, last = path.split(".")
    target = raw
    for name in parents:
        target = target[name]
    target[last] = value
    return json.dumps(raw).encode()


def long_replace(count: int) -> dict[str, Any]:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    return {"type": "Sequence", "normalizers": [step] * count}


HOSTILE = {
    "no JSON": (b"{", "not valid JSON"),
    "no object": (b"[]", "expected an object"),
    "nested deeply": (b"[" * 100_000, "nested too deeply"),
    "no model": (changed("model", None), "model type"),
    "unigram": (changed("model.type", "Unigram"), "Unigram"),
    "no merges": (changed("model.merges", None), "model.merges"),
    "vocab is a list": (changed("model.vocab", []), "model.vocab"),
    "negative id": (changed("model.vocab", {"a": -1}), "-1"),
    "huge id": (changed("model.vocab", {"a": 2**40}), "1099511627776"),
    "id is a text": (changed("model.vocab", {"a": "1"}), "'1'"),
    "id twice": (changed("model.vocab", {"a": 1, "b": 1}), "given to two"),
    "merge of unknown tokens": (changed("model.merges", [["qqqq", "zzzz"]]), "does not exist"),
    "merge without a result": (changed("model.merges", [["!", "~"]]), "does not exist"),
    "merge of three": (changed("model.merges", ["a b c"]), "not a pair"),
    "merge is a number": (changed("model.merges", [7]), "not a pair"),
    "unknown normalizer": (changed("normalizer", {"type": "Precompiled"}), "'Precompiled' is not supported"),
    "normalizer without type": (changed("normalizer", {}), "malformed"),
    "normalizer is a text": (changed("normalizer", "NFC"), "no object"),
    "growing normalizers": (changed("normalizer", long_replace(8)), "inserts more than"),
    "many rules": (changed("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 99}), "99 steps"),
    "broken regex": (
        changed(
            "pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}
        ),
        "malformed",
    ),
    "unknown pre-tokenizer": (changed("pre_tokenizer", {"type": "Bert"}), "'Bert' is not supported"),
    "added token without id": (changed("added_tokens", [{"content": "x"}]), "added_tokens"),
    "added tokens is a number": (changed("added_tokens", 7), "added_tokens"),
    "unk_token is a number": (changed("model.unk_token", 7), "'model.unk_token' is no str"),
    "byte_fallback is a text": (changed("model.byte_fallback", "yes"), "'model.byte_fallback' is no bool"),
    "added token is a text": (changed("added_tokens", ["<s>"]), "added_tokens"),
    "id of an added token is an object": (changed("added_tokens", [{"id": {}, "content": "x"}]), "added_tokens"),
    "decoder is a number": (changed("decoder", 7.5), "malformed"),
    "steps are no list": (changed("normalizer", {"type": "Sequence", "normalizers": {"a": 1}}), "malformed"),
    "type is an object": (changed("normalizer", {"type": {}}), "malformed"),
    "post-processor that panics": (
        changed(
            "post_processor",
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            },
        ),
        "malformed",
    ),
    "dropout": (changed("model.dropout", 0.5), "dropout"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_malformed_tokenizer_json_is_refused_naming_the_field(guard: Guard, name: str) -> None:
    data, words = HOSTILE[name]
    with pytest.raises(TokenizerError) as caught:
        guard.load_vocabulary("tokenizer_json", {"bytes": data})
    assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(JobError):  # here as in the helper
        tokenizer_json.load(data)


def test_a_regex_that_explodes_is_refused_in_time_and_nothing_is_printed(
    guard: Guard, capfd: pytest.CaptureFixture[str]
) -> None:
    rule = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    loaded = guard.load_vocabulary("tokenizer_json", {"bytes": changed("pre_tokenizer", rule)})
    with pytest.raises(TokenizerError):
        guard.encode(loaded.key, "a" * 40 + "!")
    assert capfd.readouterr() == ("", "")


def test_both_forms_of_merges_give_the_same_vocabulary() -> None:
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in TINY["model"]["merges"]]
    as_text = tokenizer_json.load(changed("model.merges", [" ".join(pair) for pair in pairs]))
    as_pairs = tokenizer_json.load(changed("model.merges", pairs))
    for text in tiny.TEXT:
        assert as_text.encode_plain(text) == as_pairs.encode_plain(text)


def test_a_post_processor_names_the_prefix() -> None:
    special = {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
    processor = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": special},
    }
    assert tokenizer_json.load(changed("post_processor", processor)).prefix_ids == (0,)
    assert tokenizer_json.load(json.dumps(TINY).encode()).prefix_ids == ()


@pytest.mark.parametrize(
    ("pre", "tokens", "types", "merges", "words"),
    [
        ("nosuch", ["a"], [1], [], "'nosuch'"),
        ("qwen2", ["a"], [1], None, "merges"),
        ("qwen2", ["a", "b"], [1], [], "token_type"),
        ("qwen2", ["a", "a"], [1, 1], [], "twice"),
        ("qwen2", ["a"], [1], ["a b"], "does not exist"),
    ],
)
def test_lists_of_a_gguf_file_that_disagree_are_refused(
    pre: str, tokens: list[str], types: list[int], merges: list[str] | None, words: str
) -> None:
    with pytest.raises(JobError, match=words):
        gguf_bpe.load(pre, tokens, types, merges)


def test_fill_of_a_gguf_file_is_no_token() -> None:
    tokens = ["a", "b", "ab", "<s>", "[PAD4]", "[PAD5]"]
    vocabulary = gguf_bpe.load("gpt-2", tokens, [1, 1, 1, 3, 4, 5], ["a b"])
    assert vocabulary.num_tokens == 4
    assert [token.id for token in vocabulary.added] == [3]


def test_runs_of_blanks_among_added_tokens_count_in_typed_text() -> None:
    raw = copy.deepcopy(TINY)
    size = max(token["id"] for token in raw["added_tokens"])
    size = max(size, *raw["model"]["vocab"].values()) + 1
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    raw["added_tokens"].append({"id": size, "content": "    ", **flags})
    vocabulary = tokenizer_json.load(json.dumps(raw).encode())
    assert size in vocabulary.encode_plain("a    b")
    assert vocabulary.token_bytes[size] == b"    "


BLANK = "\u2581"
REPLACE_BLANKS = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
SCHEMES: dict[str, dict[str, Any]] = {
    "prepend": {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": BLANK}, REPLACE_BLANKS]}
    },
    "always": {
        "pre_tokenizer": {"type": "Metaspace", "replacement": BLANK, "prepend_scheme": "always", "split": False}
    },
    "first": {"pre_tokenizer": {"type": "Metaspace", "replacement": BLANK, "prepend_scheme": "first", "split": False}},
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_sentencepiece_like_json_puts_its_blank_where_it_says(scheme: str) -> None:
    tokens = ["<unk>", "<s>", "<0x0A>", BLANK, "a", "b", BLANK + "a"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    raw = {
        "added_tokens": [{"id": k, "content": tokens[k], **flags} for k in (0, 1)],
        "decoder": {"type": "Metaspace", "replacement": BLANK, "prepend_scheme": "always", "split": False},
        "model": {
            "type": "BPE",
            "vocab": {text: k for k, text in enumerate(tokens)},
            "merges": [f"{BLANK} a"],
            "byte_fallback": True,
            "unk_token": "<unk>",
        },
        **SCHEMES[scheme],
    }
    vocabulary = tokenizer_json.load(json.dumps(raw).encode())
    encoder = ChatEncoder(vocabulary)
    assert vocabulary.encode_plain("a\na") == [6, 2, 4]
    after_control = [1, 4, 2, 1, 4] if scheme == "first" else [1, 6, 2, 1, 6]
    assert encoder.encode_marked_up("<s>a\n<s>a") == after_control
    assert encoder.encode_marked_up("<s> a") == [1, 6], "the blank of the text is the tokenizer's own"
    assert vocabulary.drops_first_blank and vocabulary.token_bytes[2:4] == [b"\n", b" "]


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"])
@given(
    st.lists(st.sampled_from(["\n", "\r\n", " ", "  ", "a", "B", "7", "12345", ".", "./", "'s", "ü", "今", "\u0301"]))
)
def test_a_long_text_cut_at_lines_gives_the_same_ids(pre: str, parts: list[str]) -> None:
    alphabet = list(byte_alphabet())
    merges = [f"{a} {b}" for a, b in ("aB", "Ba", "Ċa", ".Ċ", "ĊĊ", "ĠĊ", "Ġa", "12", "34", "aa", "Ġ.", "ĊĠ", "čĊ")]
    tokens = alphabet + [merge.replace(" ", "") for merge in merges]
    vocabulary = gguf_bpe.load(pre, tokens, [1] * len(tokens), merges)
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        whole = vocabulary.encode_plain(text)
        patch.setattr(bpe, "CHUNK_CHARS", 1)
        assert vocabulary.encode_plain(text) == whole


def test_a_vocabulary_that_merges_plain_text_into_a_control_token_is_refused() -> None:
    vocabulary = gguf_bpe.load("gpt-2", ["a", "b", "ab"], [1, 1, 3], ["a b"])
    with pytest.raises(JobError, match="control tokens out of plain text"):
        vocabulary.encode_plain("ab")


def test_the_longest_token_at_the_first_place_is_matched_and_white_space_flags_hold() -> None:
    tokens = [
        AddedToken(1, "<a>", True),
        AddedToken(2, "<a><b>", True),
        AddedToken(3, "<l>", True, strips_left=True),
        AddedToken(4, "<r>", True, strips_right=True),
        AddedToken(5, "word", False, single_word=True),
    ]
    found = [(start, end, t.id) for start, end, t in Matcher(tokens).find("<a><b>x  <l>y<r> \n zwords word")]
    assert found == [(0, 6, 2), (7, 12, 3), (13, 19, 4), (26, 30, 5)]
    assert list(Matcher([]).find("text")) == []


MODEL = sentencepiece_proto.bpe_model(
    [sentencepiece_proto.Piece("<unk>", 0.0, 2), sentencepiece_proto.Piece("\u2581a", -1.5)], has_dummy_prefix=True
)


def test_messages_of_any_kind_are_the_templates_to_read() -> None:
    encoder = ChatEncoder(tokenizer_json.load(json.dumps(TINY).encode()))
    plain = encoder.vocabulary.encode_plain("ab")
    assert encoder.encode_chat("{{ messages[0] }}{{ messages[1][0] }}", {"messages": ["a", ["b"]]}, {}) == plain


def test_tokens_that_the_folder_adds_and_pieces_that_are_unused() -> None:
    pieces = [*MODEL.pieces, sentencepiece_proto.Piece("gone", 0.0, sentencepiece_proto.UNUSED)]
    vocabulary = sentencepiece_vocabulary.load(MODEL.with_pieces(pieces).encode(), {4: ("<x>", True), 1: (" a", False)})
    assert vocabulary.token_bytes == [b"<unk>", b" a", b"", b"", b"<x>"]
    assert [(token.id, token.text, token.is_special) for token in vocabulary.added] == [
        (0, "<unk>", True), (1, " a", False), (4, "<x>", True),
    ]  # fmt: skip


def test_a_sentencepiece_model_survives_writing_and_reading() -> None:
    again = sentencepiece_proto.parse(MODEL.encode())
    assert again == MODEL


def test_a_sentencepiece_model_is_byte_pairs_without_normalization_to_its_library() -> None:
    pieces = [("<unk>", sentencepiece_proto.UNKNOWN), ("<s>", sentencepiece_proto.CONTROL)]
    pieces += [(text, sentencepiece_proto.NORMAL) for text in ("ab", "\u2581a", "a", "b", "\u2581", "\u00c4")]
    pieces += [(f"<0x{byte:02X}>", sentencepiece_proto.BYTE) for byte in range(256)]
    for has_prefix, first in ((True, "\u2581a"), (False, "ab")):
        listed = [sentencepiece_proto.Piece(text, -float(index), kind) for index, (text, kind) in enumerate(pieces)]
        model = sentencepiece_proto.bpe_model(listed, has_dummy_prefix=has_prefix)
        library = sentencepiece.SentencePieceProcessor(model_proto=model.encode())
        assert library.get_piece_size() == len(pieces) and library.is_byte(8) and library.is_control(1)
        assert library.encode("ab", out_type=str)[0] == ("\u2581" if has_prefix else first)
        assert library.encode("b  b", out_type=str)[-3:] == ["\u2581", "\u2581", "b"], "blanks stay as they are"
        assert library.encode("\u00c4", out_type=str)[-1] == "\u00c4", "and so do letters"
        assert library.encode("\u00e9", out_type=str)[-2:] == ["<0xC3>", "<0xA9>"]
        assert sentencepiece_proto.parse(model.encode()).has_dummy_prefix is has_prefix


VARINTS = [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\1"), (1 << 63, b"\x80" * 9 + b"\1")]


@pytest.mark.parametrize(("value", "data"), VARINTS)
def test_numbers_take_the_bytes_that_protocol_buffers_say(value: int, data: bytes) -> None:
    assert sentencepiece_proto._varint(value) == data
    assert sentencepiece_proto._read_varint(data + b"\xff", 0) == (value, len(data))


def test_a_sentencepiece_model_cut_off_anywhere_is_refused_or_smaller() -> None:
    data = MODEL.encode()
    for size in range(len(data)):
        try:
            model = sentencepiece_proto.parse(data[:size])
        except JobError as error:
            assert error.kind == "vocabulary"
        else:
            assert len(model.encode()) <= size


@pytest.mark.parametrize("data", [b"", b"\xff" * 20, b"\x0a\xff\xff\xff\xff\x0f", b"\x0b", b"\x0a\x03abc"])
def test_a_file_that_is_no_sentencepiece_model_is_refused(guard: Guard, data: bytes) -> None:
    with pytest.raises(TokenizerError):
        guard.load_vocabulary("sentencepiece", {"bytes": data, "added_tokens": {}})


def test_scores_that_are_no_numbers_are_refused(guard: Guard) -> None:
    lists = {"model": "llama", "pre": "", "tokens": ["<unk>"], "token_types": [2], "merges": None}
    for scores in (None, [], [float("nan")]):
        with pytest.raises(TokenizerError, match="scores"):
            guard.load_vocabulary("gguf", {**lists, "scores": scores, "add_space_prefix": True})


def test_an_unknown_kind_of_gguf_vocabulary_is_refused(guard: Guard) -> None:
    lists = {"model": "bert", "pre": "", "tokens": ["a"], "token_types": [1], "merges": None, "scores": None}
    with pytest.raises(TokenizerError, match="'bert'"):
        guard.load_vocabulary("gguf", {**lists, "add_space_prefix": True})
