"""Values are of their field's type, or refused."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from llmfactory.config.fields import Type, WrongType, convert, distance, nearest, parse_type
from llmfactory.run.spec import Device


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (int, 3, 3),
        (float, 3, 3.0),
        (float, "x", None),
        (float, float("nan"), None),
        (float, True, None),
        (int, 3.0, None),
        (int, True, None),
        (bool, True, True),
        (bool, 1, None),
        (bool, "yes", None),
        (str, "a", "a"),
        (str, 7, "7"),
        (str, True, None),
        (str, [1], None),
        (Device, "cpu", Device.cpu),
        (Device, Device.cuda, Device.cuda),
        (Device, "gpu", None),
        (list[float], [1, 2.5], [1.0, 2.5]),
        (list[int], [1, "a"], None),
        (list[int], 1, None),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (dict[str, int], {"a": "b"}, None),
        (Any, {"free": [1]}, {"free": [1]}),
    ],
)
def test_convert(annotation: Any, value: Any, expected: Any) -> None:
    if expected is None:
        with pytest.raises(WrongType):
            convert(parse_type(annotation), value)
    else:
        result = convert(parse_type(annotation), value)
        assert result == expected
        assert type(result) is type(expected)


def test_null() -> None:
    assert convert(parse_type(int | None), None) is None
    with pytest.raises(WrongType, match="null"):
        convert(parse_type(int), None)


def test_what_was_meant() -> None:
    for annotation, value, better in ((int, 99.7, "100"), (bool, "yes", "true"), (list[int], 4, "[4]"), (Device, "cdua", "cuda")):
        with pytest.raises(WrongType) as raised:
            convert(parse_type(annotation), value)
        assert raised.value.better == better


@pytest.mark.parametrize("annotation", [int | str, Literal["a", "b"], tuple[int, int], dict[int, int]])
def test_types_that_no_field_may_have(annotation: Any) -> None:
    with pytest.raises(TypeError):
        parse_type(annotation)


def test_words() -> None:
    assert parse_type(list[int] | None) == Type(list, optional=True, item=Type(int))
    assert parse_type(list[int] | None).expected() == "a list, each item a whole number, or null"


def test_distance() -> None:
    assert distance("", "abc") == 3
    assert distance("kitten", "sitting") == 3
    assert distance("lr", "rl") == 1  # neighbors swapped
    assert distance("same", "same") == 0


def test_nearest() -> None:
    assert nearest("lama", ["gpt2", "llama_tiny"]) == "llama_tiny"
    assert nearest("max_step", ["max_steps", "batch_size"]) == "max_steps"
    assert nearest("zzz", ["max_steps", "batch_size"]) is None
    assert nearest("anything", []) is None
