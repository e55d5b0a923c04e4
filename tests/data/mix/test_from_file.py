"""Weights from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.mix.spec import FromFile


def test_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text(json.dumps({"weights": {"a": 0.25, "b": 0.75}, "steps": 3}))
    assert FromFile(file=str(tmp_path / "w.json")).knots({"b": 1, "a": 2}) == [(0.0, {"a": 0.25, "b": 0.75})]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "No such file"),
        ("", "holds no weights by source"),
        ("[1]", "holds no weights by source"),
        ('{"weights": [1]}', "holds no weights by source"),
        ('{"weights": {"a": "x"}}', "holds no weights by source"),
        ("[" * 100_000, "holds no weights by source"),
        ('{"weights": {}}', "names no source"),
        ('{"weights": {"a": 1}}', "b has none"),
        ('{"weights": {"a": 1, "b": 1, "c": 1}}', "c is no source"),
        ('{"weights": {"a": -1, "b": 1}}', "must be a number from 0 on"),
        ('{"weights": {"a": NaN, "b": 1}}', "must be a number from 0 on"),
    ],
)
def test_a_file_without_them_is_named(tmp_path: Path, text: str | None, told: str) -> None:
    path = tmp_path / "w.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=f"data.mix.file={path}.*{told}"):
        FromFile(file=str(path)).knots({"a": 1, "b": 1})
