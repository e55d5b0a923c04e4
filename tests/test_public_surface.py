"""The public surface, frozen: groups, options, fields and defaults. A difference in the list is a decision, not an accident.

`pytest --update-golden` rewrites tests/golden/public_surface.txt.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from enum import Enum
from pathlib import Path

import pytest

from llmfactory.core.spec import Spec, stem

ROOT = Path(__file__).resolve().parent.parent
FROZEN = Path(__file__).parent / "golden" / "public_surface.txt"


def specs() -> list[type[Spec]]:
    """Every spec class of the catalogue pages."""
    found = []
    pages = [path for name in ("spec.py", "*_spec.py") for path in (ROOT / "llmfactory").rglob(name)]
    for path in sorted(pages):
        if path.parent.name == "core":
            continue
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        module = importlib.import_module(name)
        found += [
            cls for _, cls in inspect.getmembers(module, inspect.isclass) if issubclass(cls, Spec) and cls.__module__ == name
        ]
    return found


def default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    return value.name if isinstance(value, Enum) else repr(value)


def surface() -> str:
    lines = [f"option {path.relative_to(ROOT / 'conf').with_suffix('')}" for path in sorted((ROOT / "conf").rglob("*.yaml"))]
    for cls in specs():
        where = ".".join(cls.__module__.split(".")[1:-1])
        lines += [f"field {where}.{stem(cls)}.{field.name}: {field.type} = {default(field)}" for field in dataclasses.fields(cls)]
    return "\n".join(lines) + "\n"


def test_public_surface(request: pytest.FixtureRequest) -> None:
    now = surface()
    if request.config.getoption("--update-golden"):
        FROZEN.write_text(now, encoding="utf-8")
        return
    before, after = set(FROZEN.read_text(encoding="utf-8").splitlines()), set(now.splitlines())
    gone, new = sorted(before - after), sorted(after - before)
    changes = [f"- {line}" for line in gone] + [f"+ {line}" for line in new]
    assert not changes, "the public surface changed:\n" + "\n".join(changes)


def test_every_field_is_documented() -> None:
    from llmfactory.core.spec import field_docs

    silent = []
    for cls in specs():
        for field in dataclasses.fields(cls):
            is_group = str(field.type).endswith("Spec") or field.type in ("Corpus", "Trainer")  # documented by its own page
            if not is_group and not field_docs(cls).get(field.name):
                silent.append(f"{cls.__name__}.{field.name}")
    assert silent == []
