"""Formulas: readable in a terminal, and no other formula than the one that was written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlocal.chat.markdown.latex import to_unicode
from qlocal.chat.markdown.palette import PLAIN
from qlocal.chat.markdown.stream import render_markdown


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (r"x = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a}", "x = (-b ± √(b² - 4ac))/(2a)"),
        (r"\sum_{i=1}^{n} x_i^2 \leq \infty", "∑ᵢ₌₁ⁿ xᵢ² ≤ ∞"),
        (r"e^{i\pi} + 1 = 0", "e^(iπ) + 1 = 0"),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "(1 2; 3 4)"),
        (r"f(x) = \begin{cases} x, & x > 0 \\ 0, & \text{otherwise} \end{cases}", "f(x) = { x, x > 0; 0, otherwise }"),
        (r"\begin{align} a &= b + c \\ &= d \end{align}", "a = b + c\n= d"),
        (r"\hat{y} = \sigma(\mathbf{W}x) \in \mathbb{R}^{3}", "y\u0302 = σ(Wx) ∈ ℝ³"),
        (r"\left( \tfrac{1}{2} \right)^{k+1}", "( ½ )ᵏ⁺¹"),
        (r"\sqrt[3]{x+1} \neq 10^{-3}\%", "∛(x+1) ≠ 10⁻³%"),
        (r"H_2O \rightarrow 2\,\mathrm{OH}^-", "H₂O → 2 OH⁻"),
        (r"\unheard{x} y", r"\unheard{x} y"),
        (r"\frac{(a)(b)}{c}", "((a)(b))/c"),
        (r"\sin\theta \not= 0", "sin θ ≠ 0".replace("≠", "=\u0338")),
    ],
)
def test_a_formula_is_shown_as(source: str, text: str) -> None:
    assert to_unicode(source) == text


@given(
    st.lists(
        st.sampled_from([*"{}[]^_&\\ ab1'~$", "\\frac", "\\sqrt", "\\begin{cases}", "\\end{", "\\text", "\\left."])
    )
)
def test_broken_formulas_are_shown_somehow(parts: list[str]) -> None:
    assert isinstance(to_unicode("".join(parts)), str)


@pytest.mark.parametrize("source", ["{" * 5_000, "\\frac" * 700, "\\begin{cases}" * 200, "x" * 10_000])
def test_what_is_no_formula_to_read_stays_as_it_is_written(source: str) -> None:
    assert to_unicode(source) == source


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        (r"the area \(\pi r^2\) is", ["  the area π r² is"]),
        ("so $a_1$ and $b$ differ", ["  so a₁ and b differ"]),
        ("it costs $5 and then $10 more", ["  it costs $5 and then $10 more"]),
        ("it costs $5-$10", ["  it costs $5-$10"]),
        ("before\n\\[\na\n+ b\n\\]\nafter", ["  before", "", "    a + b", "", "  after"]),
        ("$$\nx^2\n$$", ["    x²"]),
        ("$$ x^2 $$\n\ny", ["    x²", "", "  y"]),
        ("\\[ open\n\nnext", ["    open", "", "  next"]),
        ("`$x$`", ["  $x$"]),
        ("\\begin{align}\na &= 1 \\\\\nb &= 2\n\\end{align}", ["    a = 1", "    b = 2"]),
        ("- item\n  \\[ x_1 \\]\n- two", ["  • item", "      x₁", "  • two"]),
    ],
)
def test_markdown_finds_formulas(source: str, lines: list[str]) -> None:
    drawn, _ = render_markdown(source, 40, PLAIN)
    assert ["  " + "".join(segment.text for segment in line).rstrip() if line else "" for line in drawn] == lines
