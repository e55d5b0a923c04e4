"""Pages of modules without source."""

from __future__ import annotations

import sys

import pytest

import llmfactory.data.source.builtin_docs as builtin_docs


def test_a_page_of_a_builtin_module() -> None:
    pages = dict(builtin_docs.pages("itertools"))
    assert pages["itertools"].startswith("itertools\n=========\n\nFunctional tools")
    assert "class itertools.chain" in pages["itertools.chain"]
    assert "itertools" in builtin_docs.modules()


def test_values_that_a_program_sets_are_no_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(builtin_docs.pages("sys"))

    def hook(*_: object) -> None:
        """Set by a test."""

    monkeypatch.setattr(sys, "displayhook", hook)
    monkeypatch.setattr(sys, "of_a_test", hook, raising=False)
    assert "Set by a test" not in repr(list(builtin_docs.pages("sys")))
    monkeypatch.undo()
    assert list(builtin_docs.pages("sys")) == before
