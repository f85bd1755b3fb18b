"""Pastes in one piece: the same events as Textual's own parser gives, however the bytes were cut."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st
from textual import events
from textual._xterm_parser import XTermParser

from qlocal.chat.pasting import WholePastes

START, END = "\x1b[200~", "\x1b[201~"
KEYS = [*"ab\n\x00~", "中", "\x1b[A", "\x1b[1;5C", "\x1b[<0;3;4M", "200~"]
PASTES = [START + "one\ntwo" + END, START + END, START + 30 * "long " + END]
FRAGMENTS = st.sampled_from(KEYS + PASTES)


def events_of(parser: XTermParser, pieces: list[str]) -> list[tuple[str, str]]:
    found = [event for piece in pieces for event in parser.feed(piece)]
    return [
        (type(event).__name__, event.text if isinstance(event, events.Paste) else getattr(event, "key", ""))
        for event in found
    ]


def cut(text: str, sizes: list[int]) -> list[str]:
    pieces, at, i = [], 0, 0
    while at < len(text):
        pieces.append(text[at : at + sizes[i % len(sizes)]])
        at, i = at + len(pieces[-1]), i + 1
    return pieces


@settings(max_examples=300, deadline=None)
@given(st.lists(FRAGMENTS, max_size=12).map("".join), st.lists(st.integers(1, 40), min_size=1))
@example("a" + START + "x" + END + "b", [1])
@example("a" + START + "x" + START + "y" + END + "b", [3, 40])
def test_events_are_those_of_textual_however_the_text_is_cut(text: str, sizes: list[int]) -> None:
    pieces = cut(text, sizes)
    assert events_of(WholePastes(), pieces) == events_of(XTermParser(), pieces)


def test_what_is_pasted_is_never_read_as_keys() -> None:
    """Textual's own parser takes a piece of a mark in front of the mark for keys."""
    text = "x" + END[:3] + END + "\r"
    for size in (1, 2, 3, 40):
        found = events_of(WholePastes(), [START, *cut(text, [size])])
        assert found == [("Paste", "x" + END[:3]), ("Key", "enter")]


def test_a_paste_is_one_event_however_long() -> None:
    text = "some words of a file\n" * 50_000
    pieces = cut("k" + START + text + END + "l", [4096])
    assert events_of(WholePastes(), pieces) == [("Key", "k"), ("Paste", text), ("Key", "l")]
