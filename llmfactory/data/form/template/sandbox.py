"""Jinja for templates that come from outside: they see plain data, reach nothing else, and end.

The names that templates know are those of `transformers`' apply_chat_template. Jinja's sandbox closes attributes and calls; what
it leaves open are templates that do not end (loops within loops, macros that call themselves twice) or fill the memory, so here
- each pass of a loop and each call is counted, against `STEPS`;
- texts that grow (`~`, `+`, `*`, `%`, whole numbers given to calls) and what is written are bounded, by `SIZE`, lists by `NUMBER`.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmfactory.core.errors import UserError

STEPS = 300_000
"""Passes of loops and calls for one text."""
SIZE = 1 << 26
"""Characters of a text."""
NUMBER = 1_000_000
"""Largest whole number that may be given to a call: ` `.ljust(n), range(n); and entries of a list."""
OPENS, CLOSES = "\U000f0000", "\U000f0001"
"""Written where `{% generation %}` begins and ends: of the private-use characters, which stand for nothing."""


class Left(threading.local):
    """What a template may still do, in this thread."""

    steps = 0

    def take(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise SecurityError(f"it does not end within {STEPS} steps")


LEFT = Left()


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        opens, closes = (nodes.Output([nodes.TemplateData(mark)], lineno=line) for mark in (OPENS, CLOSES))
        return [opens, *body, closes]


class Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "%", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (abs(left) < NUMBER and abs(right) < 64):
            raise SecurityError("a power too large")
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, (str, list, tuple)) and isinstance(times, int):
                    _sized(text, len(text) * times)
        if operator == "%" and isinstance(left, str):
            _wide(left)
        return _bounded(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:
        LEFT.take()
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and abs(value) > NUMBER:
                raise SecurityError(f"the number {value} is too large for a call")
        method = getattr(function, "__wrapped__", function)  # `format` is wrapped by the sandbox
        if isinstance(text := getattr(method, "__self__", None), str):
            _wide(text)
            if method.__name__ == "join":
                return _joined(args[0], text)
            if method.__name__ == "replace":
                return _replaced(text, *args)
        return _bounded(super().call(context, function, *args, **kwargs))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = _through(loop.iter, "_counted")
        for parent in list(tree.find_all(nodes.Node)):
            for field, value in parent.iter_fields():
                if isinstance(value, nodes.Concat):
                    setattr(parent, field, _through(value, "_bounded"))
                elif isinstance(value, list):
                    value[:] = [_through(one, "_bounded") if isinstance(one, nodes.Concat) else one for one in value]
        return tree


def _through(inner: Any, name: str) -> nodes.Filter:
    return nodes.Filter(inner, name, [], [], None, None, lineno=inner.lineno)


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        LEFT.take()
        yield value


def _bounded(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)):
        _sized(value, len(value))
    return value


def _sized(value: str | list[Any] | tuple[Any, ...], length: int) -> None:
    if isinstance(value, str):
        if length > SIZE:
            raise SecurityError("a text too long")
    elif length > NUMBER:
        raise SecurityError("a list too long")


def _wide(form: str) -> None:
    """A format that asks for a width of millions."""
    if re.search(r"[%{][^%{}]*\d{7}", form):
        raise SecurityError("a text too long")


def _replaced(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(text), str(old), str(new)
    if (len(text) + 1) * len(new) > SIZE and text.count(old) * len(new) > SIZE:
        raise SecurityError("a text too long")
    made: str = text.replace(old, new, -1 if count is None else count)
    return made


def _joined(values: Iterable[Any], between: str = "", attribute: str | None = None) -> str:
    parts = [str(value[attribute] if attribute is not None else value) for value in _counted(values)]
    if sum(map(len, parts)) + len(parts) * len(between) > SIZE:
        raise SecurityError("a text too long")
    return between.join(parts)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    if indent is not None and indent > 16:
        raise SecurityError("an indentation too deep")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> Any:
    raise TemplateError(message)


@functools.lru_cache(maxsize=1)
def environment() -> Sandbox:
    made = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    for name in ("center", "wordwrap", "format", "xmlattr", "pprint", "urlize", "filesizeformat", "batch", "slice"):
        del made.filters[name]  # no template needs them, and each can be asked for a text of any length
    made.filters |= {"tojson": _to_json, "_counted": _counted, "_bounded": _bounded, "replace": _replaced, "join": _joined}
    indent = made.filters["indent"]
    made.filters["indent"] = lambda text, width=4, *args, **named: indent(text, min(int(width), 64), *args, **named)
    made.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return made


@functools.lru_cache(maxsize=64)
def compiled(source: str) -> Any:
    return environment().from_string(source)


def render(source: str, variables: Mapping[str, Any], name: str) -> str:
    """The text of a template, with `OPENS` and `CLOSES` around what stands between generation tags.

    `name` says in a message which template it is. Raises UserError with what the template says is wrong, or what is wrong with it.
    """
    LEFT.steps = STEPS
    written, size = [], 0
    try:
        for part in compiled(source).generate(**variables):
            size += len(part)
            if size > SIZE:
                raise SecurityError("a text too long")
            written.append(part)
    except (
        TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        RecursionError,
        NotImplementedError,
    ) as error:
        raise UserError(f"{name} cannot be filled in: {error}") from error
    return "".join(written)


@functools.lru_cache(maxsize=64)
def asks_for(source: str) -> frozenset[str]:
    """Names of variables and fields that a template looks at: `tools`, `tool_calls`."""
    tree = environment().parse(source)
    found = {node.name for node in tree.find_all(nodes.Name)}
    found |= {node.attr for node in tree.find_all(nodes.Getattr)}
    found |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return frozenset(found)
