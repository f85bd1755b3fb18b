"""Markdown: the same lines whether it arrives at once or in pieces, never wider than the screen."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from qlocal.chat.markdown.palette import PLAIN
from qlocal.chat.markdown.stream import MarkdownStream, render_markdown
from qlocal.chat.markdown.wrap import Line, graphemes, line_width, wrap

NESTING = ["- ", "* ", "+ ", "1. ", "3) ", "2. ", "    ", "> ", "- - -"]
PLAIN_FRAGMENTS = [
    *("para ", "text", "\n", "\n\n", "  ", "# ", "#", "---", "===", "```", "```py\n", "\n```\n", "~~~", "**", "*", "`"),
    *(
        "~~",
        "[x](y)",
        "[r]: http://z\n",
        "[r]",
        "中文。字",
        "\t",
        "def f():\n",
        "<div>",
        "\\",
        "日本語テキスト",
        "عربي",
        "$x^2$",
        "$$\n",
        "$$",
        "\\[",
        "\\]\n",
        "\\(a\\)",
        "\\begin{align}",
        "\\end{align}\n",
    ),
    *("🎉👩\u200d👩\u200d👧", "| a | b |\n", "|--|--|\n", "|"),
]
FRAGMENTS = st.sampled_from([*PLAIN_FRAGMENTS, *NESTING])
SOURCES = st.lists(FRAGMENTS, max_size=25).map("".join)


def texts(lines: list[Line]) -> list[str]:
    return ["".join(segment.text for segment in line).rstrip() for line in lines]


def rendered(source: str, width: int = 40) -> list[str]:
    return texts(render_markdown(source, width, PLAIN)[0])


@settings(max_examples=400, deadline=None)
@given(SOURCES, st.lists(st.integers(1, 12), min_size=1))
@example("para \n| a | b |\n---|--|--|\n", [1])
def test_text_in_pieces_gives_the_same_lines_as_at_once(source: str, sizes: list[int]) -> None:
    stream = MarkdownStream(30, PLAIN)
    start, i = 0, 0
    while start < len(source):
        size = sizes[i % len(sizes)]
        stream.append(source[start : start + size])
        start, i = start + size, i + 1
    before_end = stream.lines
    fresh = MarkdownStream(30, PLAIN)
    fresh.append(source)
    assert before_end == fresh.lines, "an open text depends on how it was cut"
    stream.finish()
    assert (stream.lines, stream.blocks) == render_markdown(source, 30, PLAIN)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PLAIN_FRAGMENTS), max_size=25).map("".join), st.integers(8, 60))
def test_no_line_is_wider_than_the_screen(source: str, width: int) -> None:
    assert all(line_width(line) <= width for line in render_markdown(source, width, PLAIN)[0])


@settings(max_examples=100, deadline=None)
@given(SOURCES)
def test_nested_blocks_stay_inside_the_screen(source: str) -> None:
    # The parser nests at most twenty deep, which takes less than this width; narrower, four cells of text remain.
    assert all(line_width(line) <= 120 for line in render_markdown(source, 120, PLAIN)[0])


def test_frozen_lines_do_not_change_any_more() -> None:
    stream = MarkdownStream(40, PLAIN)
    stream.append("# Title\n\n- one\n- two\n- three\n")
    frozen = list(stream.frozen)
    assert texts(frozen) == ["Title", "━━━━━", "", "• one", "• two"]
    stream.append("- four\n\nend\n")
    assert stream.frozen[: len(frozen)] == frozen


def test_long_lists_and_codes_cost_only_their_open_part() -> None:
    stream = MarkdownStream(40, PLAIN)
    for i in range(200):
        stream.append(f"{i + 1}. item\n")
    assert len(stream.open) <= 1
    assert texts(stream.lines)[-1] == "200. item"


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["| one | **two** |\n", "| 中文 | a much longer cell |\n", "| x |\n", "no row\n", "\n", "- a\n"]
        )
    ),
    st.sampled_from(["", "before\n\n", "\n\n", "- item\n\n"]),
    st.integers(1, 30),
)
def test_a_table_that_streams_is_the_table_as_a_whole(rows: list[str], before: str, size: int) -> None:
    source = before + "| a | b |\n|---|--:|\n" + "".join(rows)
    stream = MarkdownStream(30, PLAIN)
    for i in range(0, len(source), size):
        stream.append(source[i : i + size])
        so_far = MarkdownStream(30, PLAIN)
        so_far.append(source[: i + size])
        assert (stream.lines, stream.blocks) == (so_far.lines, so_far.blocks)


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("a **b** _c_ ~~d~~ `e`", ["a b c d e"]),
        ("one\ntwo", ["one", "two"]),
        ("[text](http://x) [http://y](http://y)", ["text (http://x) http://y"]),
        ("![alt](pic.png)", ["[image: alt] (pic.png)"]),
        ("- a\n  - b\n    - c\n- d", ["• a", "  ◦ b", "    ▪ c", "• d"]),
        ("3. a\n3. b\n\n1) c", ["3. a", "4. b", "", "1) c"]),
        ("- a\n\n- b\n- c", ["• a", "", "• b", "• c"]),
        ("> a\n> > b", ["▎ a", "▎", "▎ ▎ b"]),
        ("a\n\n---\n\nb", ["a", "", "─" * 40, "", "b"]),
        ("<b>x</b> &amp;", ["<b>x</b> &"]),
        ("```\na  b\n\n c\n```", [" a  b", "", "  c"]),
        ("```py\nx = 1", [" py", " x = 1"]),
    ],
)
def test_markdown_is_drawn_as(source: str, lines: list[str]) -> None:
    assert rendered(source) == lines


def test_tables_align_and_narrow_to_the_screen() -> None:
    source = "| name | n |\n|:--|--:|\n| 中文 | 7 |\n| long words wrap here | 12 |"
    assert rendered(source, 20) == [
        "name            │  n",
        "────────────────┼───",
        "中文            │  7",
        "long words wrap │ 12",
        "here            │",
    ]
    narrow = rendered("| a | b | c | d |\n|--|--|--|--|\n| 1 | 2 | 3 | 4 |", 20)
    assert narrow == ["a: 1", "b: 2", "c: 3", "d: 4", "────────"]


def test_code_keeps_every_character_of_a_long_line() -> None:
    code = "x = '" + "ab" * 60 + "'"
    lines = rendered(f"```python\n{code}\n```", 30)[1:]
    assert "".join(line.strip() for line in lines).replace(" ", "") == code.replace(" ", "")


def plain(text: str, width: int) -> list[str]:
    return texts(wrap([(text, PLAIN.text)], width))


def test_chinese_breaks_between_characters_but_not_before_punctuation() -> None:
    assert plain("这是一个很长的句子，没有空格。", 10) == ["这是一个很", "长的句子，", "没有空格。"]
    assert all(not line.startswith("。") for line in plain("一二三四五。六七", 10))


def test_wide_graphemes_are_never_cut() -> None:
    family = "👩‍👩‍👧‍👦"
    assert "".join(plain(family * 6, 5)) == family * 6


@pytest.mark.parametrize("text", ["🇩🇪🇫🇷🇯🇵", "👩‍🚀👩🏽‍🚀", "❤️⚠️1️⃣", "مَرْحَبًا", "한국어", "e\u0301e\u0301"])
def test_what_is_seen_as_one_character_is_never_cut(text: str) -> None:
    wide = text * 4
    lines = plain(wide, 3)
    assert "".join(lines) == wide
    ends = {sum(map(len, lines[:i])) for i in range(1, len(lines))}
    assert ends <= {end for _, end, _ in graphemes(wide)}
    assert all(cell_len(line) <= 3 for line in lines)


@given(st.text(max_size=80), st.integers(2, 30))
def test_wrapping_loses_nothing_but_blanks(text: str, width: int) -> None:
    joined = "".join(plain(text, width))
    assert [c for c in joined if not c.isspace()] == [c for c in text if not c.isspace()]
