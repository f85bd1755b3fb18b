r"""Formulas as parts of Markdown: `$x$`, `\(x\)`, `$$x$$`, `\[x\]` and `\begin{…}` blocks.

The rules keep the promise of `blocks`: a display formula ends at its closing mark or at a blank line, whichever
comes first, and depends on nothing behind that.
"""

from __future__ import annotations

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

_BLOCKS = {"$$": "$$", "\\[": "\\]", "\\begin{": "\\end{"}
_INLINE = {"\\(": "\\)", "\\[": "\\]", "$$": "$$"}
# What may stand between two blocks and ends neither: a paragraph, quote or list is interrupted by a formula.
_INTERRUPTS = ["paragraph", "reference", "blockquote", "list"]


def enable_math(parser: MarkdownIt) -> MarkdownIt:
    """Add `math_block` and `math_inline` tokens; their content is LaTeX without its marks."""
    parser.block.ruler.before("fence", "math_block", _math_block, {"alt": _INTERRUPTS})
    parser.inline.ruler.before("escape", "math_inline", _math_inline)
    return parser


def _math_block(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    if state.is_code_block(start_line):
        return False
    first = _line(state, start_line)
    opening = next((mark for mark in _BLOCKS if first.startswith(mark)), None)
    if opening is None:
        return False
    closing, inner = _BLOCKS[opening], first[len(opening) :]
    is_one_line = closing in inner
    if is_one_line and not _ends(inner, closing):
        return False
    if opening == "$$" and not is_one_line and inner.strip():
        return False
    if silent:
        return True
    lines, after = [first], start_line + 1
    while not is_one_line and after < end_line and _goes_on(state, after):
        lines.append(_line(state, after))
        after += 1
        if _ends(lines[-1], closing):
            break
    text = "\n".join(lines)
    token = state.push("math_block", "math", 0)
    token.content = text if opening == "\\begin{" else text.removeprefix(opening).rstrip().removesuffix(closing)
    token.map = [start_line, after]
    state.line = after
    return True


def _goes_on(state: StateBlock, line: int) -> bool:
    return not state.isEmpty(line) and state.sCount[line] >= state.blkIndent


def _line(state: StateBlock, line: int) -> str:
    return state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].rstrip()


def _ends(text: str, closing: str) -> bool:
    """Whether a line's text ends the formula: nothing stands behind the closing mark but its own `{name}`."""
    _, found, behind = text.partition(closing)
    return bool(found) and (behind.partition("}")[2] if closing == "\\end{" else behind).strip(" .,;") == ""


def _math_inline(state: StateInline, silent: bool) -> bool:
    source, start = state.src, state.pos
    opening = source[start : start + 2]
    if (closing := _INLINE.get(opening)) is not None:
        end = source.find(closing, start + 2, state.posMax)
        if end < 0 or not source[start + 2 : end].strip():
            return False
        return _take(state, start + 2, end, end + 2, silent)
    if not opening.startswith("$"):
        return False
    dollar = _closing_dollar(source, start + 1, state.posMax)
    return dollar is not None and _take(state, start + 1, dollar, dollar + 1, silent)


def _closing_dollar(source: str, start: int, end: int) -> int | None:
    """Return where `$x$` ends. Prices are left alone: no blank inside the marks, no digit behind them."""
    if start >= end or source[start].isspace():
        return None
    found = source.find("$", start, end)
    if found <= start or source[found - 1].isspace() or "\n" in source[start:found]:
        return None
    return None if source[found + 1 : found + 2].isdigit() else found


def _take(state: StateInline, start: int, end: int, after: int, silent: bool) -> bool:
    if not silent:
        token = state.push("math_inline", "math", 0)
        token.content = state.src[start:end]
    state.pos = after
    return True
