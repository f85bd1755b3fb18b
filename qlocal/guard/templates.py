"""Chat templates: jinja2's immutable sandbox, in the environment that published templates are written for.

Bounded arithmetic and filters refuse the common bombs at once; the limits of the process catch the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.debug  # imported by jinja2 when a template raises, at a moment when no file can be opened
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from jinja2 import filters

from qlocal.guard.errors import template_error

MAX_TEMPLATE_CHARS = 1 << 20
MAX_TEXT_CHARS = 16 << 20
MAX_RANGE = 100_000
MAX_WIDTH = 10_000
MAX_INT_BITS = 4096


def render(template: str, variables: dict[str, Any]) -> str:
    """Return the rendered text; JobError of kind `template` for whatever the template does wrong or refuses."""
    try:
        text = _compiled(template).render(**variables)
    except jinja2.TemplateSyntaxError as error:
        raise template_error(f"the chat template has a syntax error in line {error.lineno}: {error.message}") from error
    except jinja2.exceptions.SecurityError as error:
        raise template_error(f"the chat template tried something forbidden: {error}") from error
    except _Refusal as error:
        raise template_error(f"the chat template refuses this conversation: {error}") from error
    except RecursionError as error:
        raise template_error("the chat template is nested too deeply") from error
    except MemoryError:
        raise
    except Exception as error:
        raise template_error(f"the chat template failed: {type(error).__name__}: {error}") from error
    if len(text) > MAX_TEXT_CHARS:
        raise template_error(f"the chat template rendered {len(text)} characters, the limit is {MAX_TEXT_CHARS}")
    return text


@lru_cache(maxsize=1)
def compile_once() -> None:
    """Let jinja2 and the codecs it uses import what they need, while files may still be opened."""
    _environment().from_string("{{ '\\n' | tojson | indent }}{{ [1] | join }}").render()


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    if len(template) > MAX_TEMPLATE_CHARS:
        raise jinja2.exceptions.SecurityError(f"it has {len(template)} characters, the limit is {MAX_TEMPLATE_CHARS}")
    return _environment().from_string(template)


class _Refusal(jinja2.TemplateError):
    """The template called raise_exception."""


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as an instance attribute)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox with bounded `*` and `**`; intercepting them also keeps them out of constant folding."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_size(operator, left, right)
        return super().call_binop(context, operator, left, right)


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _GenerationBlock]
    )
    environment.filters |= {"tojson": _tojson, "center": _center, "indent": _indent, "join": _join, "format": _format}
    environment.filters["replace"] = _replace
    environment.globals.pop("lipsum")
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now, "range": _range}
    return environment


def _check_size(operator: str, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * max(right, 1) if operator == "**" else left.bit_length() + right.bit_length()
        if bits > MAX_INT_BITS:
            raise jinja2.exceptions.SecurityError(f"a number of more than {MAX_INT_BITS} bits")
    elif operator == "*":
        count, value = (left, right) if isinstance(left, int) else (right, left)
        if isinstance(count, int) and hasattr(value, "__len__"):
            _check_length(len(value) * count)


def _check_length(length: int) -> None:
    if length > MAX_TEXT_CHARS:
        raise jinja2.exceptions.SecurityError(f"a value of {length} items or characters, the limit is {MAX_TEXT_CHARS}")


def _check_width(width: int) -> None:
    if width > MAX_WIDTH:
        raise jinja2.exceptions.SecurityError(f"a width of {width}, the limit is {MAX_WIDTH}")


def _raise_exception(message: str) -> None:
    raise _Refusal(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _range(*arguments: int) -> range:
    values = range(*arguments)
    if len(values) > MAX_RANGE:
        raise jinja2.exceptions.SecurityError(f"a range of {len(values)} numbers, the limit is {MAX_RANGE}")
    return values


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes for HTML, which no model has seen in training.
    if indent is not None:
        _check_width(indent)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _center(value: str, width: int = 80) -> str:
    _check_width(width)
    return filters.do_center(value, width)


def _indent(value: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    added = len(width) if isinstance(width, str) else width
    _check_width(added)
    _check_length(len(value) + added * (value.count("\n") + 1))
    return filters.do_indent(value, width, first, blank)


@jinja2.pass_eval_context
def _replace(eval_ctx: Any, s: str, old: str, new: str, count: int | None = None) -> str:
    s, old, new = str(s), str(old), str(new)
    _check_length(len(s) + (s.count(old) if count is None else count) * max(0, len(new) - len(old)))
    return filters.do_replace(eval_ctx, s, old, new, count)


@jinja2.pass_eval_context
def _join(eval_ctx: Any, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    items = list(value)
    _check_length(len(d) * len(items) + sum(len(item) for item in items if isinstance(item, str)))
    return filters.sync_do_join(eval_ctx, items, d, attribute)


def _format(value: str, *arguments: Any, **named: Any) -> str:
    for width in re.findall(r"\d+", value):
        _check_width(int(width))
    return filters.do_format(value, *arguments, **named)
