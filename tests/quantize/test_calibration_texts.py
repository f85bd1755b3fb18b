"""The calibration set that ships with `quantize`: size, variety and form, and that its own README tells the truth."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import quantize

TEXTS = Path(quantize.__file__).parent / "calibration" / "texts"
FILES = sorted(p for p in TEXTS.iterdir() if p.suffix in (".txt", ".jsonl"))
SEPARATOR = "=== next document ==="
NAME = re.compile(r"[a-z]+-[a-z]+(-[a-z]+)?\.(txt|jsonl)")
REQUIRED_KINDS = {"prose", "dialogue", "code", "math", "data", "tables", "explain", "mail"}
REQUIRED_LANGUAGES = {"en", "zh", "ja", "ko", "ar", "de", "fr", "es", "pt", "it", "ru", "hi", "tr", "vi", "pl", "id"}


def kind_and_language(path: Path) -> tuple[str, str]:
    kind, language = path.name.split(".")[0].split("-")[:2]
    return kind, language


def documents(path: Path) -> list[str]:
    return re.split(rf"^{SEPARATOR}\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def conversations(path: Path) -> list[list[dict[str, Any]]]:
    return [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]


def pieces() -> Iterator[tuple[str, str]]:
    """Every document and message with the name of its file."""
    for path in FILES:
        if path.suffix == ".txt":
            yield from ((path.name, document) for document in documents(path))
        else:
            yield from ((path.name, m["content"]) for messages in conversations(path) for m in messages)


def test_the_set_is_large_enough() -> None:
    assert sum(p.stat().st_size for p in FILES) >= 100_000


def test_every_file_name_tells_kind_and_language() -> None:
    assert [p.name for p in FILES if not NAME.fullmatch(p.name)] == []
    assert {kind_and_language(p)[0] for p in FILES} >= REQUIRED_KINDS


def test_required_languages_and_programming_languages_are_there() -> None:
    natural = {kind_and_language(p)[1] for p in FILES if len(kind_and_language(p)[1]) == 2}
    assert natural >= REQUIRED_LANGUAGES
    programs = {kind_and_language(p)[1] for p in FILES if kind_and_language(p)[0] == "code"}
    assert programs >= {"python", "cpp", "javascript", "rust", "sql", "shell", "html"}


@pytest.mark.parametrize("path", [p for p in FILES if p.suffix == ".txt"], ids=lambda p: p.name)
def test_documents_are_whole_and_the_separator_stands_alone(path: Path) -> None:
    assert all(len(document.strip()) > 100 for document in documents(path))
    assert all(SEPARATOR not in document for document in documents(path))


@pytest.mark.parametrize("path", [p for p in FILES if p.suffix == ".jsonl"], ids=lambda p: p.name)
def test_conversations_alternate_and_end_with_the_assistant(path: Path) -> None:
    for messages in conversations(path):
        assert all(set(m) == {"role", "content"} and m["content"].strip() for m in messages)
        roles = [m["role"] for m in messages]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert turns


def test_no_paragraph_occurs_twice() -> None:
    paragraphs = Counter(
        paragraph.strip() for _, text in pieces() for paragraph in text.split("\n\n") if len(paragraph.strip()) >= 40
    )
    assert [p for p, count in paragraphs.items() if count > 1] == []


def test_text_is_clean_utf8_without_control_characters() -> None:
    strange = [(name, c) for name, text in pieces() for c in text if (ord(c) < 32 and c not in "\n\t") or c == "\ufffd"]
    assert strange == []
    assert [p.name for p in FILES if b"\r" in p.read_bytes()] == []


def test_some_texts_hold_emoji_code_blocks_tables_and_formulas() -> None:
    everything = "\n".join(text for _, text in pieces())
    for sign in ("🌱", "```python", "```sql", "|---|", "$$", "- [x]"):
        assert sign in everything


def test_the_readme_counts_bytes_truly() -> None:
    by_kind: Counter[str] = Counter()
    by_language: Counter[str] = Counter()
    for path in FILES:
        kind, language = kind_and_language(path)
        by_kind[kind] += path.stat().st_size
        by_language[language] += path.stat().st_size
    readme = (TEXTS / "README.md").read_text(encoding="utf-8")
    rows = [f"| {name} | {size} |" for counts in (by_kind, by_language) for name, size in sorted(counts.items())]
    missing = [row for row in rows if row not in readme]
    assert missing == [], "correct the tables in README.md to these rows"
