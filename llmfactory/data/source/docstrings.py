"""Pages of documentation from Python source, read by `ast` without importing it, laid out as `help()` prints them.

A module gives one page of its own (its docstring, then its functions) and one of each class (its docstring, then its methods).
Parsing is what costs time: what has been found in a source is kept, for its pages and its members alike, as long as the process is.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def pages(source: str, module: str) -> tuple[tuple[str, str], ...]:
    """(qualified name, page) of everything in the module that is documented. Raises SyntaxError."""
    return _found(source, module)[0]


@functools.lru_cache(maxsize=1024)
def _found(source: str, module: str) -> tuple[tuple[tuple[str, str], ...], tuple[Member, ...]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a wrong escape in someone else's string
        tree = ast.parse(source)
    return tuple(_pages(tree, module)), tuple(_members(tree, module))


def _pages(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    entries = []
    if doc := _doc(tree):
        entries.append(doc)
    entries += [_entry(node, module) for node in _definitions(tree, Function) if _doc(node)]
    if entries:
        yield module, "\n\n".join([title(module), *entries]) + "\n"
    for node in _definitions(tree, ast.ClassDef):
        yield from _classes(node, module)


@dataclass(frozen=True, slots=True)
class Member:
    """A function, method or class that is documented."""

    name: str
    """Qualified: email.message.Message.get_param."""
    arguments: tuple[str, ...] | None
    """Their names, `self` and `cls` left out; None: it is not called (a class, a property)."""
    doc: str


def members(source: str, module: str) -> tuple[Member, ...]:
    """Of the module and its classes, in order. Raises SyntaxError."""
    return _found(source, module)[1]


def _members(node: ast.Module | ast.ClassDef, parent: str) -> Iterator[Member]:
    for function in _definitions(node, Function):
        if doc := _doc(function):
            yield Member(f"{parent}.{function.name}", None if _is_property(function) else _arguments(function.args), doc)
    for inner in _definitions(node, ast.ClassDef):
        name = f"{parent}.{inner.name}"
        if doc := _doc(inner):
            yield Member(name, None, doc)
        yield from _members(inner, name)


def _arguments(arguments: ast.arguments) -> tuple[str, ...]:
    plain = [*arguments.posonlyargs, *arguments.args]
    named = [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    named += [one.arg for one in arguments.kwonlyargs]
    named += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return tuple([one.arg for one in plain if one.arg not in ("self", "cls")] + named)


def title(name: str) -> str:
    return f"{name}\n{'=' * len(name)}"


def indented(heading: str, *bodies: str) -> str:
    """The heading, and below it the bodies four columns in, with a blank line between them."""
    return "\n".join([heading, "\n\n".join(textwrap.indent(body, "    ") for body in bodies)])


def _classes(node: ast.ClassDef, parent: str) -> Iterator[tuple[str, str]]:
    name = f"{parent}.{node.name}"
    bodies = [doc] if (doc := _doc(node)) else []
    bodies += [_entry(method, None) for method in _definitions(node, Function) if _doc(method)]
    if bodies:
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        yield name, indented(f"class {name}({bases})" if bases else f"class {name}", *bodies) + "\n"
    for inner in _definitions(node, ast.ClassDef):
        yield from _classes(inner, name)


def _entry(node: ast.FunctionDef | ast.AsyncFunctionDef, parent: str | None) -> str:
    name = f"{parent}.{node.name}" if parent else node.name
    signature = f"{name}({ast.unparse(node.args)})"
    if node.returns is not None:
        signature += f" -> {ast.unparse(node.returns)}"
    if _is_property(node):
        signature = name
    doc = _doc(node)
    assert doc
    return indented(("async " if isinstance(node, ast.AsyncFunctionDef) else "") + signature, doc)


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(isinstance(mark, ast.Name) and mark.id == "property" for mark in node.decorator_list)


def _doc(node: ast.AST) -> str:
    """The docstring without its indentation; empty where there is none."""
    assert isinstance(node, (ast.Module, ast.ClassDef, *Function))
    doc = ast.get_docstring(node, clean=False)
    return inspect.cleandoc(doc).rstrip() if doc else ""


def _definitions(node: ast.Module | ast.ClassDef, kind: type | tuple[type, ...]) -> Iterator:  # type: ignore[type-arg]
    """Definitions of the kind in a body, also those under `if` and `try`, the first of each name."""
    seen: set[str] = set()
    bodies = [node.body]
    while bodies:
        for child in bodies.pop(0):
            if isinstance(child, kind) and child.name not in seen:  # type: ignore[attr-defined]
                seen.add(child.name)  # type: ignore[attr-defined]
                yield child
            elif isinstance(child, (ast.If, ast.Try)):
                bodies += [child.body, child.orelse]
                if isinstance(child, ast.Try):
                    bodies += [handler.body for handler in child.handlers]
