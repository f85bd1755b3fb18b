"""The documents keep up with the program: every command and option is mentioned, every link leads somewhere."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import quantize.cli
import quantize.verify
from qlocal.cli import COMMANDS, build_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers below `parser` by name; empty for a command without subcommands."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= action.choices
    return found


def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command line there is, as it is typed, with its parser; subcommands included."""
    todo: dict[str, argparse.ArgumentParser] = {
        "qlocal": build_parser(),
        "quantize": quantize.cli.build_parser(),
        "quantize verify": quantize.verify.build_parser(),
    }
    found: dict[str, argparse.ArgumentParser] = {}
    while todo:
        name, parser = todo.popitem()
        found[name] = parser
        todo |= {f"{name} {sub}": child for sub, child in subcommands(parser).items()}
    return found


def long_options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if action.help is not argparse.SUPPRESS:
            yield from (o for o in action.option_strings if o.startswith("--") and o != "--help")


ALL = commands()


def section_of(name: str) -> str:
    """The part of docs/commands.md under the heading of a command, with what stands under the headings below it."""
    found = re.search(rf"^(#+) `{name}`\n(.*?)(?=^#{{1,2}} |\Z)", REFERENCE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/commands.md has no heading `{name}`"
    return found[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name: str) -> None:
    assert f"`qlocal {name}" in README


@pytest.mark.parametrize("name", ALL)
def test_every_option_stands_in_the_reference(name: str) -> None:
    # Options that several commands share are described once, under a heading of their own.
    shared = REFERENCE.split("## Loading", 1)[1].split("\n## ", 1)[0]
    text = section_of(name) + shared
    missing = [o for o in long_options(ALL[name]) if not re.search(rf"`{re.escape(o)}\b", text)]
    assert missing == [], f"docs/commands.md says nothing of these options of `{name}`"


@pytest.mark.parametrize("name", ALL)
def test_the_reference_describes_no_option_that_is_gone(name: str) -> None:
    mentioned = set(re.findall(r"`(--[a-z0-9-]+)", section_of(name).split("\n### ", 1)[0]))
    assert mentioned - set(long_options(ALL[name])) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = [t for t in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in t]
    assert [t for t in targets if not (page.parent / t).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_named_files_of_the_repository_exist(page: Path) -> None:
    named = re.findall(
        r"`((?:qlocal|quantize|tests|docs|scripts|benchmarks)/[A-Za-z0-9_/.-]+)`", page.read_text(encoding="utf-8")
    )
    assert [n for n in named if not (ROOT / n).exists() and not n.split("/")[-1].isupper() and "NAME" not in n] == []


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)\b", README)) <= targets
