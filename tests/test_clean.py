"""What foreign text may not send to a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlocal.clean import clean, clean_line

PAYLOADS = {
    "\x1b]0;title\x07": "\\x1b]0;title\\x07",
    "\x1b]52;c;aGk=\x1b\\": "\\x1b]52;c;aGk=\\x1b\\",
    "\x9b31m": "\\x9b31m",
    "a\rb\x08c\x7f\x00": "a\\x0db\\x08c\\x7f\\x00",
    "\u202eabc\u2066d\u2069": "\\u202eabc\\u2066d\\u2069",
    "\U000e0041\U000e007f": "\\U000e0041\\U000e007f",
    "\ud800": "\\ud800",
    "\ufffea\ufdd0": "\\ufffea\\ufdd0",
}


@pytest.mark.parametrize("text", PAYLOADS)
def test_control_sequences_become_visible(text: str) -> None:
    assert clean(text) == PAYLOADS[text]


def test_ordinary_text_stays_as_it_is() -> None:
    text = "a\tb\nc [/path] {x} é 今天 👩‍👩‍👧 مرحبا \u200f"
    assert clean(text) is text or clean(text) == text


def test_a_line_has_no_line_ends() -> None:
    assert clean_line("a\n\tb\u2028") == "a\\x0a\\x09b\\u2028"


@given(st.text(st.characters() | st.sampled_from("\x1b\x9b\u202e\U000e0001\ud800\n\t")))
def test_no_control_character_is_left_and_cleaning_twice_changes_nothing(text: str) -> None:
    cleaned = clean(text)
    assert all(unicodedata.category(c) != "Cc" or c in "\n\t" for c in cleaned)
    assert not {"\u202e", "\u2066", "\U000e0001"} & set(cleaned)
    assert clean(cleaned) == cleaned
    cleaned.encode("utf-8")
