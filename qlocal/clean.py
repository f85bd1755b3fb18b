"""What may reach a terminal: foreign text with every control sequence made visible.

Model output, names from files, tool results, error texts and titles can hold escape sequences that set the
title, write the clipboard or reorder what is read. Everything foreign passes here once, where it is shown;
stored text stays as it was.
"""

from __future__ import annotations

import re

_UNSAFE = (
    "\x00-\x08\x0b-\x1f\x7f"  # C0 without tab and newline, DEL
    "\x80-\x9f"  # C1: one character begins a sequence, as ESC [ does
    "\u202a-\u202e\u2066-\u2069"  # changes of writing direction
    "\ud800-\udfff"  # lone surrogates cannot be written as UTF-8
    "\ufdd0-\ufdef\ufffe\uffff"  # no characters, and of no certain width
    "\U000e0000-\U000e007f"  # tags: invisible copies of ASCII
)
_UNSAFE_TEXT = re.compile(f"[{_UNSAFE}]")
_UNSAFE_LINE = re.compile(f"[{_UNSAFE}\t\n\u2028\u2029]")


def clean(text: str) -> str:
    """Return `text` with unsafe characters as visible escapes (`\\x1b`, `\\u202e`); tabs and newlines stay."""
    return _UNSAFE_TEXT.sub(_visible, text)


def clean_line(text: str) -> str:
    """Return `text` for a place of one line, as a title: like `clean`, with tabs and line ends visible too."""
    return _UNSAFE_LINE.sub(_visible, text)


def blotted(text: str) -> str:
    """Return `text` with a blot for every unsafe character; the very same text where there is none."""
    return text if _UNSAFE_LINE.search(text) is None else _UNSAFE_LINE.sub("\ufffd", text)


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
