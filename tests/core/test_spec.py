from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from llmfactory.core.errors import ConfigError, Problem
from llmfactory.core.spec import Spec, above, at_least, between, field_docs, stem, walk


@dataclass(kw_only=True, slots=True)
class Inner(Spec):
    """A part."""

    width: int = 2
    """Columns.

    Second paragraph."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "width")


@dataclass(kw_only=True, slots=True)
class RmsThing_(Inner):
    """A part with more of it."""

    rate: float | None = None
    """Per step; None: off."""
    share: float = 0.5
    undocumented: int = 3
    inner: Inner = field(default_factory=Inner)
    parts: list[Inner] = field(default_factory=list)
    named: dict[str, Inner] = field(default_factory=dict)

    def problems(self) -> Iterator[Problem]:
        yield from Inner.problems(self)
        yield from above(self, 0.0, "rate", repair=0.1)
        yield from between(self, 0.0, 1.0, "share")


def test_all_problems_of_an_object_come_at_once_with_repairs() -> None:
    with pytest.raises(ConfigError) as caught:
        RmsThing_(width=0, rate=0.0, share=1.5)
    assert [(problem.path, problem.value, problem.repair) for problem in caught.value.problems] == [
        ("width", 0, "width=1"),
        ("rate", 0.0, "rate=0.1"),
        ("share", 1.5, "share=1.0"),
    ]
    assert RmsThing_(width=1, rate=0.1, share=1.0).rate == 0.1


@pytest.mark.parametrize(("value", "ok"), [(None, True), (0.0, False), (-1.0, False), (1e-9, True)])
def test_none_passes_and_above_excludes_the_bound(value: float | None, ok: bool) -> None:
    if ok:
        assert RmsThing_(rate=value).rate == value
    else:
        with pytest.raises(ConfigError):
            RmsThing_(rate=value)


def test_walk_reaches_lists_and_dicts() -> None:
    spec = RmsThing_(parts=[Inner(width=4)], named={"a": Inner(width=5)})
    assert {path: node.width for path, node in walk(spec)} == {"": 2, "inner": 2, "parts.0": 4, "named.a": 5}


def test_docs_come_from_the_source_and_are_inherited() -> None:
    docs = field_docs(RmsThing_)
    assert docs["width"] == "Columns.\n\nSecond paragraph."
    assert docs["rate"] == "Per step; None: off."
    assert "undocumented" not in docs
    assert "share" not in docs


def test_stem() -> None:
    assert [stem(cls) for cls in (Inner, RmsThing_)] == ["inner", "rms_thing"]
