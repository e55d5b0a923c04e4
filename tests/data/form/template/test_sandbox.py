"""Templates from outside: what they may ask for, what they may not, and that each of them ends."""

from __future__ import annotations

from typing import Any

import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.form.template.sandbox import CLOSES, NUMBER, OPENS, asks_for, render


def filled(source: str, **variables: Any) -> str:
    return render(source, variables, "the template")


@pytest.mark.parametrize(
    "source",
    [
        "{{ x.__class__.__mro__[1].__subclasses__() }}",
        "{{ x.append(1) }}",
        "{{ x['__class__'].__base__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__.items() }}",
        "{{ (x | attr('__class__')).mro() }}",
        "{{ '{0.__class__.__mro__}'.format(x) + 1 }}",
        "{% include 'passwd' %}",
        "{% import 'os' as os %}",
        "{% from 'os' import path %}",
        "{% extends 'base' %}",
        "{{ self._TemplateReference__context.environment.loader.x.y }}",
        "{{ open('x') }}",
        "{{ dict(a=1).update(b=2) }}",
        "{% for",
        "{{ x | nothing }}",
    ],
)
def test_nothing_outside_can_be_reached(source: str) -> None:
    with pytest.raises(UserError, match="the template cannot be filled in: "):
        filled(source, x=[1])


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in x %}{% for b in x %}{% for c in x %}{% for d in x %}{{ a }}{% endfor %}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set s = namespace(t='aaaaaaaa') %}{% for i in range(60) %}{% set s.t = s.t ~ s.t %}{% endfor %}{{ s.t }}",
        "{% set s = namespace(t='aaaaaaaa') %}{% for i in range(60) %}{% set s.t = s.t + s.t %}{% endfor %}{{ s.t }}",
        "{% set s = namespace(t='aaaaaaaa') %}{% for i in range(60) %}{% set s.t = [s.t, s.t] | join %}{% endfor %}{{ s.t }}",
        "{% set s = namespace(t=['a']) %}{% for i in range(60) %}{% set s.t = s.t + s.t %}{% endfor %}",
        "{% for i in range(99999) %}{{ x | tojson }}{% endfor %}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{{ 'a'.ljust(10 ** 9) }}",
        "{{ ('a' * 9999) | replace('a', 'b' * 99999) }}",
        "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
        "{{ 'a'.join(['b' * 99999] * 99999) }}",
        "{{ (['a' * 99999] * 9999) | join }}",
        "{{ x | tojson(indent=1000000000) }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ range(10 ** 9) }}",
        "{{ lipsum(1000000000) }}",
    ],
)
@pytest.mark.timeout(120)
def test_every_template_ends_soon(source: str) -> None:
    with pytest.raises(UserError, match="the template cannot be filled in: "):
        filled(source, x=["a" * 100] * 200)


def test_a_list_is_bounded_by_its_entries() -> None:
    assert filled("{{ ([1] * n) | length }}", n=NUMBER) == str(NUMBER)
    for source in ("{{ [1] * n }}", "{{ n * (1,) }}", "{{ [1] + [1] * (n - 1) }}"):
        with pytest.raises(UserError, match="a list too long"):
            filled(source, n=NUMBER + 1)


def test_an_indentation_is_no_deeper_than_a_page() -> None:
    assert len(filled("{{ 'a\nb' | indent(1000000) }}")) < 100


def test_what_templates_use_works() -> None:
    assert filled("{% for a in x %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ 'v' ~ a }} {% endfor %}", x=[5, 6]) == (
        "1False2v5 2True2v6 "
    )
    assert filled("{% for a in x %}{% if a == 2 %}{% break %}{% endif %}{{ a }}{% endfor %}", x=[1, 2, 3]) == "1"
    assert filled("  {% if true %}\n  a\n  {% endif %}\n") == "  a\n", "blocks take their line ends and indentation with them"
    assert filled("{{ x | tojson }}", x={"é": "<a>"}) == '{"é": "<a>"}', "no HTML"
    assert filled("{{ x | tojson(indent=2) }}", x=[1]) == "[\n  1\n]"
    assert filled("{{ 'a-b'.split('-') | join('+') }}{{ 'x'.join(['1', '2']) }}{{ 'aa'.replace('a', 'b', 1) }}") == "a+b1x2ba"
    assert filled("{{ '%s!' % 'a' }}{{ '{}'.format(3) }}{{ 2 ** 3 }}{{ [1] + [2] }}{{ 'ab' * 2 }}") == "a!38[1, 2]abab"
    assert filled("{{ x | map(attribute='a') | list }}", x=[{"a": 1}]) == "[1]"
    assert len(filled("{{ strftime_now('%Y') }}")) == 4
    assert filled("{% set n = namespace(a=1) %}{% set n.a = 2 %}{{ n.a }}") == "2"


def test_generations_are_marked_where_they_stand() -> None:
    source = "{% for a in x %}u{% generation %}\n{{ a }}{% endgeneration %}\n{% endfor %}"
    assert filled(source, x=[1, 2]) == f"u{OPENS}1{CLOSES}u{OPENS}2{CLOSES}"


def test_what_a_template_looks_at() -> None:
    found = asks_for("{% if tools %}{{ messages[0].tool_calls }}{% endif %}{{ m['name'] }}")
    assert {"tools", "tool_calls", "messages", "name"} <= found
    assert "tool" not in found
