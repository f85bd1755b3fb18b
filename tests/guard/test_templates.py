"""The environment that published templates are written for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qlocal.errors import TemplateError
from qlocal.guard.client import Guard
from qlocal.guard.errors import JobError
from qlocal.guard.templates import render

OWN_FOLDER = Path(__file__).parent
FILES = {
    "qwen2-instruct": "qwen2-instruct.jinja",
    "qwen2.5-instruct": "qwen2.5-instruct.jinja",
    "llama-3-instruct": "llama-3-equivalent.jinja",
    "llama-3.1-instruct": "llama-3.1-equivalent-no-tools.jinja",
    "mixtral-8x7b-instruct-2023": "mixtral-8x7b-instruct-2023.jinja",
    "mistral-v1-system": "mistral-v1-system.jinja",
}


def template_of(case: dict[str, Any], folder: Path) -> str:
    """Return a case's template; the one of Llama 3.1 with tools may not be stored, ours renders the same."""
    if case["model"] == "llama-3.1-instruct" and "tools" in case:
        return (OWN_FOLDER / "llama-3.1-with-tools.jinja").read_text()
    return (folder / FILES[case["model"]]).read_text()


def test_all_stored_cases_render_or_raise_as_published(shared_data: Path, guard: Guard) -> None:
    folder = shared_data / "templates"
    cases = json.loads((folder / "cases.json").read_text())
    assert len(cases) == 70
    for case in cases:
        variables = {
            "messages": case["messages"],
            "tools": case.get("tools"),
            "add_generation_prompt": case["add_generation_prompt"],
            "bos_token": case["bos_token"] or "",
            "eos_token": case["eos_token"],
        }
        if case["expected"] is None:
            message = case["error"].removeprefix("TemplateError: ")
            with pytest.raises(TemplateError, match=re.escape(message)):
                guard.render(template_of(case, folder), variables)
        else:
            assert guard.render(template_of(case, folder), variables) == case["expected"], case["case"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ x | tojson }}", '{"ü": "<a> & \'b\'"}'),
        ("{{ x | tojson(indent=2) }}", '{\n  "ü": "<a> & \'b\'"\n}'),
        ("{{ x | tojson(ensure_ascii=True) }}", '{"\\u00fc": "<a> & \'b\'"}'),
        ("{{ x | tojson(separators=(',', ':'), sort_keys=true) }}", '{"ü":"<a> & \'b\'"}'),
        (
            "{% for i in range(5) %}"
            "{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "02",
        ),
        ("  {% if true %}\n  a\n  {% endif %}\n", "  a\n"),
        ("{% generation %}a{% endgeneration %}", "a"),
        ("{% set n = namespace(a=1) %}{% set n.a = n.a + 1 %}{{ n.a }}", "2"),
        ("{{ missing }}{{ x.missing is defined }}", "False"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ 3 * 2.5 }} {{ 2.5 * 2.0 }} {{ 2.0 ** 3 }}", "7.5 5.0 8.0"),
        ("{{ 'a' * 3 }}{{ 2 ** 10 }}{{ 'ab' | replace('a', 'b') }}{{ ['a', 'b'] | join('-') }}", "aaa1024bba-b"),
        ("{{ '%s=%05d' | format('a', 1) }}{{ 'a\nb' | indent(2) }}{{ 'a' | center(3) }}", "a=00001a\n  b a "),
    ],
)
def test_filters_and_tags_are_those_of_published_templates(template: str, expected: str) -> None:
    assert render(template, {"x": {"ü": "<a> & 'b'"}}) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses this conversation: roles must alternate"),
        ("a\n{% if %}", "syntax error in line 2"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ x.y.z }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "forbidden"),
        ("{{ lipsum() }}", "UndefinedError"),
        ("{{ 1 | nosuch }}", "syntax error in line 1"),
    ],
)
def test_a_template_that_fails_says_why_in_one_line(template: str, message: str) -> None:
    with pytest.raises(JobError, match=re.escape(message)) as caught:
        render(template, {})
    assert caught.value.kind == "template" and "\n" not in caught.value.message
