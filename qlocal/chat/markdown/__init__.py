"""Markdown for a terminal, written while it arrives: source text in, lines of styled segments out.

Knows Rich's segments and styles, not Textual; the transcript turns its lines into strips.
"""
