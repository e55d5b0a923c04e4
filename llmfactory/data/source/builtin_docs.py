"""Pages of documentation of the modules that are compiled into the interpreter, which have no source to read.

Only their own functions and types are asked: other values of `sys` and `builtins` change while a program runs.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types
import warnings
from collections.abc import Iterator

from llmfactory.data.source.docstrings import indented, title

LEFT_OUT = ("xxsubtype",)
"""Examples for writers of extensions."""


def modules() -> list[str]:
    return [name for name in sorted(sys.builtin_module_names) if name not in LEFT_OUT]


def pages(name: str) -> Iterator[tuple[str, str]]:
    """(qualified name, page) of the module and of each of its types that is documented."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated modules say so when they are imported
        module = importlib.import_module(name)
    members = [(key, value) for key, value in sorted(vars(module).items()) if not key.startswith("__")]
    entries = [_text(module)] if _text(module) else []
    for key, value in members:
        if isinstance(value, types.BuiltinFunctionType) and _text(value):
            entries.append(indented(f"{name}.{key}{_signature(value)}", _text(value)))
    if entries:
        yield name, "\n\n".join([title(name), *entries]) + "\n"
    for key, value in members:
        if isinstance(value, type) and value.__module__ == name and value.__name__ == key:
            yield from _type(value, f"{name}.{key}")


def _type(cls: type, name: str) -> Iterator[tuple[str, str]]:
    bodies = [_text(cls)] if _text(cls) else []
    for key, value in sorted(vars(cls).items()):
        if isinstance(value, (types.MethodDescriptorType, types.ClassMethodDescriptorType, types.GetSetDescriptorType)) and _text(
            value
        ):
            bodies.append(indented(f"{key}{_signature(value)}", _text(value)))
    if bodies:
        yield name, indented(f"class {name}{_signature(cls)}", *bodies) + "\n"


def _text(value: object) -> str:
    doc = getattr(value, "__doc__", None)
    return inspect.cleandoc(doc).rstrip() if isinstance(doc, str) else ""


def _signature(value: object) -> str:
    text = getattr(value, "__text_signature__", None)
    return text.replace("$", "") if isinstance(text, str) else ""
