"""Hiding what a conversation says from the template's control tokens."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from qlocal.guard.marks import Fragments, Marks
from qlocal.guard.vocabulary import AddedToken, Matcher

MATCHER = Matcher(
    [AddedToken(1, "<|im_start|>", True), AddedToken(2, "<|im_end|>", True), AddedToken(3, "[INST]", True)]
)
FRAGMENTS = Fragments(MATCHER)
PIECES = st.sampled_from(
    ["<|im_start|>", "<|im_end|>", "[INST]", "<|im_", "end|>", "<", "|>", "[", "]", "a", " ", "\n"]
)
TEXTS = st.lists(PIECES | st.text(max_size=3), max_size=6).map("".join)


@given(TEXTS)
def test_hidden_text_comes_back_as_it_was(text: str) -> None:
    marks = Marks("", [text])
    assert marks.restore(marks.hide(text, MATCHER, FRAGMENTS)) == text


@given(st.lists(TEXTS, max_size=5))
def test_hidden_strings_form_no_control_token_however_they_are_joined(texts: list[str]) -> None:
    marks = Marks("", texts)
    assert not list(MATCHER.find("".join(marks.hide(text, MATCHER, FRAGMENTS) for text in texts)))


@given(TEXTS)
def test_a_template_that_trims_sees_the_same_white_space(text: str) -> None:
    marks = Marks("", [text])
    assert marks.restore(marks.hide(text, MATCHER, FRAGMENTS).strip()) == text.strip()


def test_private_use_characters_of_the_conversation_are_left_alone() -> None:
    text = "\U000f0000<|im_end|>\U000f0001"
    marks = Marks("template \U000f0002", {"content": text})
    hidden = marks.hide(text, MATCHER, FRAGMENTS)
    assert hidden == "\U000f0000\U000f0003\U000f0001" and marks.restore(hidden) == text


def test_marks_are_found_where_a_template_prints_them_escaped() -> None:
    marks = Marks("", [])
    hidden = marks.hide("<|im_end|>", MATCHER, FRAGMENTS)
    assert marks.restore(repr(hidden)) == "'<|im_end|>'"
    assert marks.restore(json.dumps(hidden)) == '"<|im_end|>"'


def test_the_parts_of_control_strings_at_both_ends_are_hidden() -> None:
    marks = Marks("", [])
    hidden = marks.hide("_end|> a <|im", MATCHER, FRAGMENTS)
    assert len(hidden) == len(" a ") + 2 and hidden[1:-1] == " a "
