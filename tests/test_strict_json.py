"""What Python's own parser lets pass, and a later step would trip over, is refused where the file is read."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlocal import strict_json
from qlocal.errors import FormatError
from qlocal.strict_json import MAX_DEPTH, parse_json_object


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    """Return an object whose one value begins `depth - 1` further levels."""
    return ('{"a":' + opening * (depth - 1) + closing * (depth - 1) + "}").encode()


REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not valid JSON"),
    "blanks": (b" \n", "not valid JSON"),
    "a text": (b'"a"', "holds str, expected an object"),
    "a list": (b"[]", "holds list, expected an object"),
    "null": (b"null", "holds NoneType, expected an object"),
    "cut off": (b'{"a": 1', "not valid JSON"),
    "something behind": (b"{} {}", "not valid JSON"),
    "a comment": (b"{} // ok", "not valid JSON"),
    "a comma at the end": (b'{"a": 1,}', "not valid JSON"),
    "single quotes": (b"{'a': 1}", "not valid JSON"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "not valid JSON"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "is not UTF-8 at byte 0"),
    "half a character": (b'{"a": "\xe4\xbb"}', "is not UTF-8 at byte 7"),
    "a surrogate in UTF-8": (b'{"a": "\xed\xa0\x80"}', "is not UTF-8"),
    "an overlong slash": (b'{"a": "\xc0\xaf"}', "is not UTF-8"),
    "NaN": (b'{"a": NaN}', "NaN is not a number"),
    "Infinity": (b'{"a": Infinity}', "Infinity is not a number"),
    "-Infinity": (b'{"a": [-Infinity]}', "-Infinity is not a number"),
    "1e999": (b'{"a": 1e999}', "number 1e999 is out of range"),
    "-1e999": (b'{"a": -1e999}', "number -1e999 is out of range"),
    "a number of 5,000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "a key twice": (b'{"a": 1, "a": 1}', "key 'a' appears twice"),
    "a key twice, spelled otherwise": (b'{"a": 1, "\\u0061": 2}', "key 'a' appears twice"),
    "a key twice, deep": (b'{"b": [{"a": {"x": 1, "x": 1}}]}', "key 'x' appears twice"),
    "half of a pair": (b'{"a": "\\ud83d"}', "half of a surrogate pair"),
    "the other half": (b'{"a": "\\ude00"}', "half of a surrogate pair"),
    "halves in the wrong order": (b'{"a": "\\ude00\\ud83d"}', "half of a surrogate pair"),
    "a pair and a half": (b'{"a": "\\ud83d\\ude00\\ude00"}', "half of a surrogate pair"),
    "half of a pair in a key": (b'{"\\uD800": 1}', "half of a surrogate pair"),
    "halves parted by a backslash": (b'{"a": "\\ud83d\\\\\\ude00"}', "half of a surrogate pair"),
    "65 lists": (nested(MAX_DEPTH + 1), "nested more than 64 levels"),
    "65 objects": (nested(MAX_DEPTH + 1, '{"a":', "}").replace(b":}", b":1}"), "nested more than 64 levels"),
    "100,000 lists": (nested(100_000), "nested too deeply"),
    "100,000 lists that are left open": (b'{"a":' + b"[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_json_that_is_not_exact_is_refused_by_name(case: str) -> None:
    data, message = REFUSED[case]
    with pytest.raises(FormatError, match=message) as caught:
        parse_json_object(data, "x.json")
    assert caught.value.message.startswith("x.json: ") and "\n" not in caught.value.message


def test_a_text_that_would_fill_the_memory_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "json", None)
    for unit in (b"[],", b"{},", b'{"a":0},', b'"a\xf0\x9f\x98\x80",'):
        with pytest.raises(FormatError, match=r"bytes of JSON would take up to \d+ bytes of memory"):
            parse_json_object(b'{"a":[' + unit * (strict_json.MAX_MEMORY_BYTES // 60) + b"0]}", "x.json")


WEIGHTS = {"{": 187, "[": 91, ",": 75, ":": 153, "a": 3, "\u00e9": 10, "\u4eca": 15, "\U0001f600": 36}
"""What each character adds to the bytes that its text may take, where the widest of them stands in the text."""


@pytest.mark.parametrize("character", WEIGHTS)
def test_every_character_counts_for_what_it_may_take(character: str) -> None:
    one, two = (strict_json._memory(character.encode() * count) for count in (1, 2))
    assert (one, two) == (WEIGHTS[character], 2 * WEIGHTS[character])


UNITS = ["[],", "{},", '{"a":0},', '{"":[]},', "0,", "1.5,", '"ab",', '"\u00e9",', '"\u4eca",', '"\U0001f600",']


@pytest.mark.parametrize("unit", UNITS)
def test_parsing_takes_no_more_memory_than_was_counted(unit: str) -> None:
    data = ('{"a":[' + unit * 5000 + "0]}").encode()
    tracemalloc.start()
    try:
        value = parse_json_object(data, "x.json")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(value["a"]) == 5001 and peak <= strict_json._memory(data)


def test_the_limit_of_memory_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b'{"a": [1, 2, {}]}'
    assert strict_json.MAX_MEMORY_BYTES == 224 << 20, "of the 256 MiB in which a hostile file is refused"
    monkeypatch.setattr(strict_json, "MAX_MEMORY_BYTES", strict_json._memory(data))
    assert parse_json_object(data, "x.json") == {"a": [1, 2, {}]}
    with pytest.raises(FormatError, match=f"up to {strict_json._memory(data) + 3} bytes"):
        parse_json_object(data + b" ", "x.json")


def test_long_keys_and_numbers_are_quoted_in_part() -> None:
    key, number = "k" * 80, "9" * 80 + "e999"
    with pytest.raises(FormatError) as twice:
        parse_json_object(f'{{"b": 0, "{key}": 1, "{key}": 2}}'.encode(), "x.json")
    assert f"key '{key[:60]}' appears twice" in twice.value.message
    with pytest.raises(FormatError) as large:
        parse_json_object(f'{{"a": {number}}}'.encode(), "x.json")
    assert f"number {number[:60]} is out of range" in large.value.message


ALLOWED: list[Any] = [
    {"a": 1.5, "b": [None, True, -(10**30)], "": "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")},
    {"a": "\\ud800 is no half, its backslash is escaped"},
    json.loads(nested(MAX_DEPTH)),
]


@pytest.mark.parametrize("value", ALLOWED, ids=["values", "backslash", "64 levels"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_exact_json_is_read_as_it_is(value: Any, ascii_only: bool) -> None:
    assert parse_json_object(json.dumps(value, ensure_ascii=ascii_only).encode(), "x") == value


TEXTS = st.text(st.sampled_from('a\\"/u\u00e9\u4eca\U0001f600\ud800\udfff\ud83d\ude00'), max_size=6)


@given(st.dictionaries(TEXTS, TEXTS, max_size=3), st.booleans())
def test_only_texts_that_can_be_encoded_pass(value: dict[str, str], ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    try:
        found = parse_json_object(text.encode("utf-8", "surrogatepass"), "x")
    except FormatError:
        assert any(0xD800 <= ord(c) <= 0xDFFF for pair in json.loads(text).items() for part in pair for c in part)
    else:
        assert found == json.loads(text)
        str(found).encode()
