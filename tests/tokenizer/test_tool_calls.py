from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlocal.tokenizer.tool_calls import CallArguments, CallBegun, Content, ToolFormat, ToolParser, format_of

NAMES = ["get", "put"]
GET = '{"name": "get", "arguments": {"city": "Köln } \\" { <tool_call>", "deep": [{"a": []}]}}'
PUT = '{"name": "put", "parameters": {}}'


def read(text: str, cuts: list[int] | None = None, form: ToolFormat = ToolFormat.TAGGED) -> tuple[str, list[Any]]:
    """Return content and calls of an answer that comes in pieces."""
    parser = ToolParser(form, NAMES)
    edges = [0, *sorted({c % (len(text) + 1) for c in cuts or []}), len(text)]
    parts = [p for a, b in itertools.pairwise(edges) for p in parser.feed(text[a:b])] + parser.finish()
    content = "".join(part.text for part in parts if isinstance(part, Content))
    names = {part.index: part.name for part in parts if isinstance(part, CallBegun)}
    calls = [
        (name, "".join(p.text for p in parts if isinstance(p, CallArguments) and p.index == index))
        for index, name in names.items()
    ]
    assert list(names) == list(range(len(names)))
    return content, calls


def tagged(call: str) -> str:
    return f"<tool_call>\n{call}\n</tool_call>"


ARGUMENTS = json.loads(GET)["arguments"]
TAGGED = [
    ("plain text, 3 < 4 and <tool", "plain text, 3 < 4 and <tool", []),
    ("  kept white space \n", "  kept white space \n", []),
    (tagged(GET), "", [("get", ARGUMENTS)]),
    (f"I look.\n\n{tagged(GET)}\n{tagged(PUT)}\n", "I look.", [("get", ARGUMENTS), ("put", {})]),
    (f"{tagged(PUT)} and then", " and then", [("put", {})]),
    (tagged('{"arguments": {"a": 1}, "name": "put"}'), "", [("put", {"a": 1})]),
    (tagged('{"name": "put", "arguments": "{\\"a\\": 1}"}'), "", [("put", {"a": 1})]),
    (tagged('{"name": "put"}'), "", [("put", {})]),
    (tagged('{"name": "unknown", "arguments": {}}'), "", [("unknown", {})]),
    (f"<tool_call>{PUT}", "", [("put", {})]),
    (f"<tool_call>{PUT} never closed", "never closed", [("put", {})]),
]


@pytest.mark.parametrize(("text", "content", "calls"), TAGGED)
def test_tagged_calls_are_read(text: str, content: str, calls: list[Any]) -> None:
    found, found_calls = read(text)
    assert found == content and [(name, json.loads(arguments)) for name, arguments in found_calls] == calls


@pytest.mark.parametrize(
    "text", ["<tool_call>\nno call\n</tool_call>", '<tool_call>{"name": 7}</tool_call>', "<tool_call>"]
)
def test_what_is_no_call_is_content(text: str) -> None:
    found, calls = read(text)
    assert not calls and text.removesuffix("</tool_call>") in found


BARE = [
    ("It is warm.", "It is warm.", []),
    ('{"name": "get", "parameters": {"city": "Rom"}}', "", [("get", {"city": "Rom"})]),
    ('\n{"type": "function", "name": "put", "parameters": {}}', "", [("put", {})]),
    (
        '{"name": "get", "parameters": {}}; {"name": "put", "parameters": {"a": 1}}',
        "",
        [("get", {}), ("put", {"a": 1})],
    ),
    ('{"parameters": {"a": 1}, "name": "put"}', "", [("put", {"a": 1})]),
    ('{"name": "Bob", "parameters": {}}', '{"name": "Bob", "parameters": {}}', []),
    ('{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}', []),
    ('{"age": 3}', '{"age": 3}', []),
    ('{"name": "get", "para', '{"name": "get", "para', []),
    ("", "", []),
    ('{"name": "put", "parameters": {}}\n\nIt is  done.', "It is  done.", [("put", {})]),
]


@pytest.mark.parametrize(("text", "content", "calls"), BARE)
def test_bare_calls_are_those_of_known_functions(text: str, content: str, calls: list[Any]) -> None:
    found, found_calls = read(text, form=ToolFormat.BARE)
    assert found == content and [(name, json.loads(arguments)) for name, arguments in found_calls] == calls


@given(st.sampled_from([text for text, _, _ in TAGGED]), st.lists(st.integers(0, 300), max_size=40))
def test_tagged_answers_read_the_same_however_they_are_cut_up(text: str, cuts: list[int]) -> None:
    assert read(text, cuts) == read(text)


@given(st.sampled_from([text for text, _, _ in BARE]), st.lists(st.integers(0, 200), max_size=40))
def test_bare_answers_read_the_same_however_they_are_cut_up(text: str, cuts: list[int]) -> None:
    assert read(text, cuts, ToolFormat.BARE) == read(text, form=ToolFormat.BARE)


@given(st.text('<tool_call>/{}"name: \n', max_size=60), st.lists(st.integers(0, 60), max_size=20))
def test_nothing_breaks_the_reading(text: str, cuts: list[int]) -> None:
    for form in ToolFormat:
        assert read(text, cuts, form) == read(text, form=form)


def test_arguments_come_before_the_call_is_complete() -> None:
    parser = ToolParser(ToolFormat.TAGGED, NAMES)
    parts = parser.feed('<tool_call>\n{"name": "get", "arguments": {"a": "x')
    assert parts == [CallBegun(0, "get"), CallArguments(0, '{"a": "x')] and parser.num_complete == 0
    assert parser.feed('yz"') == [CallArguments(0, 'yz"')]
    parser.feed("}}")
    assert parser.num_complete == 1


def test_the_template_tells_the_format() -> None:
    assert format_of("{% if tools %}<tool_call>{% endif %}") is ToolFormat.TAGGED
    assert format_of('{{ tools }} Environment: ipython {"name": x, "parameters": y}') is ToolFormat.BARE
    assert format_of("{% for m in messages %}{% endfor %}") is None
    assert format_of("{{ tools }} [TOOL_CALLS]") is None
