"""Streaming gives the same text as decoding at once, and never half a character."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qlocal.tokenizer import StreamDecoder, Tokenizer

TEXTS = st.text() | st.sampled_from(["今天天气很好", "👩‍👩‍👧‍👦🏳️‍🌈", "é\u0301ü", "مرحبا", "a😀b"])


def decode(table: list[bytes], skipped: set[int], *, drops_first_blank: bool = False) -> list[str]:
    decoder = StreamDecoder(table, skipped, drops_first_blank)
    return [*map(decoder.push, range(len(table))), decoder.finish()]


@given(TEXTS, st.data())
def test_any_split_of_the_bytes_streams_whole_characters(text: str, data: st.DataObject) -> None:
    raw = text.encode("utf-8", "replace")
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=12)))
    table = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    parts = decode(table, set())
    assert "".join(parts) == raw.decode()
    assert "\ufffd" not in "".join(parts).replace("\ufffd", "", raw.decode().count("\ufffd"))
    assert parts[-1] == ""


@given(st.lists(st.binary(max_size=4), max_size=12))
def test_any_bytes_stream_to_the_same_text_as_at_once(table: list[bytes]) -> None:
    assert "".join(decode(table, set())) == b"".join(table).decode("utf-8", "replace")


@given(st.lists(st.integers(0, 320), max_size=40))
def test_any_ids_stream_to_the_same_text_as_at_once(tiny_tokenizer: Tokenizer, ids: list[int]) -> None:
    decoder = tiny_tokenizer.stream_decoder()
    parts = [*map(decoder.push, ids), decoder.finish()]
    kept = [i for i in ids if i not in tiny_tokenizer.special_ids]
    whole = b"".join(map(tiny_tokenizer.token_bytes, kept)).decode("utf-8", "replace")
    assert "".join(parts) == whole == tiny_tokenizer.decode(ids)


def test_an_unfinished_character_becomes_a_replacement_at_the_end_only() -> None:
    assert decode(["今".encode()[:2]], set()) == ["", "\ufffd"]


def test_only_the_very_first_blank_is_dropped_and_only_where_the_tokenizer_made_it() -> None:
    table = [b"", b"<s>", b" Hi", b" there"]
    assert "".join(decode(table, {1}, drops_first_blank=True)) == "Hi there"
    assert "".join(decode(table, {1})) == " Hi there"
    assert "".join(decode([b"Hi", b" there"], set(), drops_first_blank=True)) == "Hi there"


def test_ids_without_a_token_give_nothing() -> None:
    decoder = StreamDecoder([b"a"], set(), drops_first_blank=False)
    assert decoder.push(7) + decoder.push(-1) + decoder.push(0) == "a"
