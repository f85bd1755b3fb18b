"""Tool calls in the text of an answer, as the reader sees them: a fence that nothing inside can close."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qlocal.chat.tools.base import Round

MAX_LINES = 12
MAX_LINE_CHARS = 300
"""Of a result, as it is shown; the model gets all of it."""
_FENCES = re.compile(r"`{3,}")


def rounds_of(meta: Mapping[str, Any]) -> list[Round]:
    """Return the rounds that are stored with an answer; what cannot be read counts as none."""
    try:
        return [Round.from_json(values) for values in meta.get("tools") or []]
    except (KeyError, TypeError, ValueError):
        return []


def block(one: Round) -> str:
    """Return a round as Markdown, with empty lines around it."""
    lines: list[str] = []
    results = {result.call_id: result for result in one.results}
    for call in one.calls:
        lines.append(f"{call.name} {call.arguments}")
        result = results.get(call.call_id)
        if result is not None:
            shown = result.text.splitlines()
            lines += [f"{'✗' if result.is_error else '→'} {_short(line)}" for line in shown[:MAX_LINES]]
            lines += [f"  … {len(shown) - MAX_LINES:,} more lines"] if len(shown) > MAX_LINES else []
    text = "\n".join(lines)
    fence = "`" * (1 + max([2, *(len(found) for found in _FENCES.findall(text))]))
    return f"\n\n{fence}tool\n{text}\n{fence}\n\n"


def _short(line: str) -> str:
    return line if len(line) <= MAX_LINE_CHARS else f"{line[:MAX_LINE_CHARS]} … {len(line) - MAX_LINE_CHARS:,} more"


def woven(content: str, rounds: Sequence[Round]) -> str:
    """Return the text of an answer with its tool calls where they happened."""
    parts, before = [], 0
    for one in rounds:
        parts += [content[before : one.at], block(one)]
        before = one.at
    return "".join([*parts, content[before:]])
