from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from qlocal.server.stop_strings import StopFilter

TEXTS = st.text(alphabet="abS\n😀", max_size=40)
STOPS = st.lists(st.text(alphabet="abS\n😀", min_size=1, max_size=4), max_size=4)


def shown(parts: list[str], stops: list[str]) -> tuple[str, bool]:
    stop_filter = StopFilter(stops)
    text = "".join(stop_filter.feed(part) for part in parts)
    return text + stop_filter.finish(), stop_filter.stopped


@given(text=TEXTS, stops=STOPS, cuts=st.lists(st.integers(0, 40), max_size=8))
def test_result_does_not_depend_on_how_the_text_is_cut_up(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    parts = [text[a:b] for a, b in pairwise(edges)]
    assert shown(parts, stops) == shown([text], stops)


@given(text=TEXTS, stops=STOPS)
def test_what_is_shown_is_a_beginning_without_any_stop_string(text: str, stops: list[str]) -> None:
    result, stopped = shown(list(text), stops)
    assert text.startswith(result)
    assert not any(stop in result for stop in stops)
    assert stopped == any(stop in text for stop in stops)
    assert stopped or result == text


def test_text_is_not_held_back_longer_than_needed() -> None:
    stop_filter = StopFilter(["STOP"])
    assert [stop_filter.feed(part) for part in ("a", "ST", "x", "S", "TOP!")] == ["a", "", "STx", "", ""]
    assert stop_filter.stopped
