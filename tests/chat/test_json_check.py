"""The check of JSON while it is written, against Python's own reader."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlocal.chat.json_check import JsonCheck, JsonState

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def state_of(text: str) -> JsonState:
    check = JsonCheck()
    check.feed(text)
    return check.state


def is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
    except (ValueError, RecursionError):
        return False
    return True


@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_every_beginning_of_json_can_become_it(value: object, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    check = JsonCheck()
    for character in text:
        assert check.state is not JsonState.BROKEN
        check.feed(character)
    assert check.state is JsonState.COMPLETE


@given(st.text(alphabet='{}[]",:\\ntrufalse0123-.eE \n\x01u', max_size=14))
def test_what_is_complete_is_what_python_reads(text: str) -> None:
    assert (state_of(text) is JsonState.COMPLETE) == is_json(text)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("Sure! {", 0),
        ("{a", 1),
        ('{"a" 1', 5),
        ("[1,]", 3),
        ("01", 1),
        ('{"a":1,}', 7),
        ("nul1", 3),
        ('"\\x', 2),
        ("[1}", 2),
    ],
)
def test_what_is_broken_is_told_with_its_place(text: str, at: int) -> None:
    check = JsonCheck()
    check.feed(text)
    assert (check.state, check.broken_at) == (JsonState.BROKEN, at)
    check.feed("{}")
    assert check.broken_at == at


def test_states_on_the_way() -> None:
    assert [state_of(text) for text in ("", "{", '{"a": [1, 2', "{} ", "12", "1.", "-")] == [
        JsonState.EMPTY,
        *[JsonState.PARTIAL] * 2,
        *[JsonState.COMPLETE] * 2,
        *[JsonState.PARTIAL] * 2,
    ]
