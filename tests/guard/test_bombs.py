"""Templates that try to use up time or memory, and templates that try to leave the sandbox."""

from __future__ import annotations

import time

import psutil
import pytest

from qlocal.errors import TemplateError, TemplateLimitError
from qlocal.guard.client import WAIT_PER_CPU, Guard
from qlocal.guard.frames import JOB_CPU_S

BUSY_MACHINE_S = 3.0
"""What ending a process may take beside other work."""

BOMBS = [
    "{{ 9**(9**9) }}",
    "{{ (9**9**9)**(9**9) }}",
    "{{ 2**100000000 }}",
    "{{ 'a' * 10**9 }}",
    "{{ [0] * 10**9 }}",
    "{{ ('a' * 10**7) * 10**7 }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ range(10**12) | list }}",
    "{{ range(10**12) | sum }}",
    "{{ 'x' | center(1500000000) }}",
    "{{ 'x'.center(1500000000) }}",
    "{{ 'x'.ljust(1500000000) }}",
    "{{ 'x'.zfill(1500000000) }}",
    "{{ '%01500000000d' | format(1) }}",
    "{{ '%01500000000d' % 1 }}",
    "{{ '{:1500000000}'.format(1) }}",
    "{{ 'a\nb' | indent(1500000000) }}",
    "{{ [{'a': 1}] | tojson(indent=1500000000) }}",
    "{% set x = namespace(v='a') %}{% for i in range(40) %}{% set x.v = x.v ~ x.v %}{% endfor %}{{ x.v }}",
    "{% set x = namespace(v='a') %}{% for i in range(40) %}{% set x.v = x.v | replace('a', 'aa') %}{% endfor %}",
    "{% set x = namespace(v=['a']) %}{% for i in range(40) %}{% set x.v = x.v + x.v %}{% endfor %}{{ x.v | join }}",
    "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% for x in ['a'] recursive %}{{ loop(['a']) }}{% endfor %}",
    "{{ '(' * 9000 }}" + "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ [1] | batch(10**10, 0) | list }}",
    "{{ ('a' * 10**6) | wordwrap(1) | length }}{% for i in range(10**5) %}{{ 'a' * 10**6 }}{% endfor %}",
    "{% for i in range(99999) %}{{ 'a' * 10**6 }}{% endfor %}",
    "{{ range(99999) | map('center', 9999) | join }}",
    "x" * ((1 << 20) + 1),
]

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ().__class__.__bases__[0].__subclasses__() }}",
    "{{ [].__class__.__base__.__subclasses__()[40]('/etc/passwd').read() }}",
    "{{ self.__init__.__globals__.__builtins__.__import__('os').popen('id').read() }}",
    "{{ self._TemplateReference__context.cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__.os.popen('id').read() }}",
    "{{ namespace.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ lipsum.__globals__.__builtins__.open('/etc/passwd').read() }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('/etc/passwd').read() }}",
    "{{ strftime_now.__globals__.sys.modules.os.system('id') }}",
    "{{ request.application.__globals__.__builtins__.__import__('os').popen('id').read() }}",
    "{{ config.items() }}",
    "{{ get_flashed_messages.__globals__.__builtins__ }}",
    "{{ ''|attr('__class__')|attr('__mro__')|last|attr('__subclasses__')() }}",
    "{{ ''['__cla' ~ 'ss__']['__mro__'][1]['__subclasses__']() }}",
    "{{ '{0.__class__.__mro__}'.format('') | length // 0 }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(cycler).x.y }}",
    "{{ ['x'] | map(attribute='__class__.__mro__') | list | first | first }}",
    "{{ (['x'] | map('attr', '__class__') | first).__mro__ }}",
    "{{ ('{a.__class__.__mro__}' | attr('format_map'))({'a': 'x'}) }}",
    "{% set f = ''.format_map %}{{ f({}).__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{% set _ = messages.__setitem__(0, 1) %}{{ _ }}{{ messages.__class__.__init__() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends '/etc/passwd' %}",
    "{{ (lambda: 1)() }}",
    "{{ __import__('os').system('id') }}",
    "{{ raise_exception.__code__.co_consts[0] }}",
    "{{ range.__self__.eval('1') }}",
]


@pytest.mark.parametrize("template", BOMBS, ids=lambda t: t[:50])
def test_a_bomb_is_refused_in_time_and_costs_the_parent_no_memory(guard: Guard, template: str) -> None:
    guard.render("ready", {})
    parent = psutil.Process()
    before = parent.memory_info().rss
    started = time.monotonic()
    with pytest.raises(TemplateError) as caught:
        guard.render(template, {"messages": []})
    assert time.monotonic() - started < WAIT_PER_CPU * JOB_CPU_S + BUSY_MACHINE_S
    assert parent.memory_info().rss - before < 20 << 20
    assert "Traceback" not in str(caught.value) and len(str(caught.value)) < 600
    assert guard.render("{{ 1 + 1 }}", {}) == "2"


def test_an_endless_template_is_told_from_one_that_refuses(guard: Guard) -> None:
    with pytest.raises(TemplateLimitError, match="more than 2 s of processor time"):
        guard.render("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", {})
    with pytest.raises(TemplateError) as caught:
        guard.render("{{ raise_exception('no system message') }}", {})
    assert not isinstance(caught.value, TemplateLimitError)


@pytest.mark.parametrize("template", ESCAPES, ids=lambda t: t[:60])
def test_an_escape_from_the_sandbox_is_refused(guard: Guard, template: str) -> None:
    with pytest.raises(TemplateError):
        guard.render(template, {"messages": [{"role": "user", "content": "hi"}]})


def test_a_bomb_that_is_never_reached_is_not_computed_while_compiling(guard: Guard) -> None:
    assert guard.render("{% if false %}{{ 9**(9**9) }}{{ 'a' * 10**9 }}{% endif %}ok", {}) == "ok"
