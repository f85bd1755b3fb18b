"""Probabilities of tokens: their packed form, what is computed of them, and how they lie on lines."""

from __future__ import annotations

import math
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from qlocal.chat import wire
from qlocal.chat.events import Logprobs, TextDelta
from qlocal.chat.logprobs import Candidate, TokenLogprobs, pack, text_of, token_ids, unpack
from qlocal.chat.token_layout import lay_out, shown_texts
from qlocal.errors import HistoryError
from tests.chat.scripted import scored

CANDIDATES = st.builds(
    Candidate,
    st.none() | st.integers(0, 2**31),
    st.binary(max_size=8),
    st.integers(-9_999_000, 0).map(lambda thousandths: thousandths / 1000),
)
TOKENS = st.lists(st.builds(TokenLogprobs, CANDIDATES, st.lists(CANDIDATES, max_size=5).map(tuple)), max_size=20)


@given(TOKENS)
def test_packed_tokens_come_back_to_a_thousandth(tokens: list[TokenLogprobs]) -> None:
    assert unpack(pack(tokens)) == tokens


@pytest.mark.parametrize("data", [b"", b"nonsense", pack([])[:-2], zlib.compress(b"\x93\x02\x90\x90")])
def test_what_pack_never_wrote_is_refused(data: bytes) -> None:
    with pytest.raises(HistoryError):
        unpack(data)


def test_entropy_counts_what_is_left_as_one_token() -> None:
    (even,) = scored({"a": 0.25, "b": 0.25, "c": 0.25, "d": 0.25})
    (sure,) = scored({"a": 1.0})
    (half,) = scored({"a": 0.5})
    assert even.entropy_bits == pytest.approx(2.0)
    assert sure.entropy_bits == pytest.approx(0.0)
    assert half.entropy_bits == pytest.approx(1.0) and half.rest == pytest.approx(0.5)


def test_a_token_counts_as_the_likeliest_by_its_id() -> None:
    twin = (Candidate(1, b"x", -0.1), Candidate(2, b"x", -3.0))
    assert TokenLogprobs(twin[0], twin).is_best and not TokenLogprobs(twin[1], twin).is_best


def test_characters_that_several_tokens_share_are_whole_in_the_text_and_each_token_is_seen() -> None:
    raws = ["中".encode()[:1], "中".encode()[1:], b"!", "é".encode()[:1]]
    tokens = [TokenLogprobs(Candidate(i, raw, -1.0)) for i, raw in enumerate(raws)]
    assert text_of(tokens) == "中!"
    assert shown_texts(raws) == ["·", "中", "!", "·"]
    assert token_ids(tokens) == [0, 1, 2, 3]
    assert token_ids([*tokens, TokenLogprobs(Candidate(None, b"x", -1.0))]) is None


@given(st.lists(st.text(alphabet="ab 中é́\n\t\x1b👩‍👩‍👧", min_size=1, max_size=30), max_size=30), st.integers(4, 40))
def test_every_token_is_on_the_lines_in_its_order_and_no_line_is_too_wide(texts: list[str], width: int) -> None:
    layout = lay_out(texts, width)
    order = [piece.token_idx for line in layout.lines for piece in line]
    assert order == sorted(order) and len(layout.line_of) == len(texts)
    for line in layout.lines:
        assert not line or line[-1].end <= max(width, cell_len(line[-1].text))
    for idx, text in enumerate(texts):
        if text.strip("\n"):
            assert any(piece.token_idx == idx for line in layout.lines[layout.line_of[idx] :] for piece in line)


def test_a_chunk_with_probabilities_is_read_with_ids_and_without() -> None:
    best = '{"token":"A","bytes":[65],"logprob":-0.5,"id":7},{"token":"\\ufffd","bytes":[228],"logprob":-9999.0}'
    own = f'{{"token":"A","bytes":[65],"logprob":-0.5,"id":7,"top_logprobs":[{best}]}}'
    foreign = '{"token":"é","logprob":-1,"bytes":null,"top_logprobs":[]},{"token":3},"x"'
    chunk = f'{{"choices":[{{"delta":{{"content":"A"}},"logprobs":{{"content":[{own},{foreign}]}}}}]}}'
    text, logprobs = wire.parse_chunk(chunk)
    assert text == TextDelta("A") and isinstance(logprobs, Logprobs)
    first, second = logprobs.tokens
    assert first.chosen == Candidate(7, b"A", -0.5) and first.top[1] == Candidate(None, b"\xe4", -9999.0)
    assert second == TokenLogprobs(Candidate(None, "é".encode(), -1.0))
    assert math.isclose(first.chosen.probability, 0.6065, abs_tol=1e-4)
