"""Items of JSON files against Python's reader, in every cut; bad ones alone; endless ones bounded."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

import llmfactory.data.source.json_list as json_list
from llmfactory.data.source.json_list import items
from llmfactory.data.source.spec import Files
from llmfactory.data.source.streams import Damaged
from tests.data.source.conftest import Read


def value(random_: random.Random, depth: int = 0) -> Any:
    kind = random_.randrange(7 if depth < 4 else 4)
    if kind < 2:
        return "".join(random_.choices('ab"\\[]{},: \n\té中🙂\u2028', k=random_.randrange(12)))
    if kind == 2:
        return random_.choice([None, True, 1.5, -3, 10**20])
    if kind == 3:
        return random_.choice(["", [], {}])
    if kind == 4:
        return [value(random_, depth + 1) for _ in range(random_.randrange(4))]
    return {f"k{i}": value(random_, depth + 1) for i in range(random_.randrange(4))}


@pytest.mark.parametrize("seed", range(60))
def test_items_are_those_of_a_whole_file_reader(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random_ = random.Random(seed)
    expected = [{"n": i, "v": value(random_)} for i in range(random_.randrange(6))]
    indent = random_.choice([None, 1])
    ascii_ = random_.random() < 0.5
    wrapped: Any = expected
    if random_.random() < 0.5 and expected:
        wrapped = {"version": "x[{", "empty": [], "numbers": [1, [2]], "data": expected, "last": {"a": [1]}}
    text = json.dumps(wrapped, indent=indent, ensure_ascii=ascii_).encode()
    for block in (1, 2, 3, 7, 1 << 20):
        monkeypatch.setattr(json_list, "BLOCK", block)
        assert [json.loads(raw) for raw, _ in items(io.BytesIO(text), 1 << 20)] == expected


def test_a_file_that_is_one_record(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"text": "a whole\\nrecord",\n "tags": ["a", "b"], "meta": {"x": []}}\n')
    assert [d.text for d in read(Files(files=[str(path)]))[0]] == ["a whole\nrecord"]


def test_a_bad_item_is_set_aside_alone(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": "one"}, {"text": oops}, 7, {"text": "\\ud800"}, , {"text": "two"}]')
    documents, account = read(Files(files=[str(path)], bad_share=1.0))
    assert [(d.name, d.text) for d in documents] == [(f"{path}, item 1", "one"), (f"{path}, item 6", "two")]
    assert [(bad.where.removeprefix(f"{path}, "), bad.reason) for bad in account.bads] == [
        ("item 2", "invalid JSON"),
        ("item 3", "no object"),
        ("item 4", "invalid utf-8"),
        ("item 5", "invalid JSON"),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"text": "a"}, {"text"', "truncated"),
        ('[{"text": "a"}, ', "truncated"),
        ('{"data": [{"text": "a"}]', "truncated"),
        ('[{"text": "a"}] and more', "text after the end"),
        ('[{"text": "a"}]]', "invalid JSON"),
        ('{"a": [{"text": "a"}], "b": [{"text": "b"}]}', "several lists of objects"),
        ('{"a": 1}\n{"a": [', "text after the end"),
    ],
)
def test_what_follows_a_broken_place_is_one_bad_record(text: str, reason: str) -> None:
    with pytest.raises(Damaged, match=reason):
        list(items(io.BytesIO(text.encode()), 1000))


@pytest.mark.parametrize("block", [16, 1000])
def test_items_and_strings_without_end_are_bounded(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_list, "BLOCK", block)
    long = [{"text": "a" * 5000}, {"text": "b"}, {"list": ['\\"' * 30] * 40}, {"deep": [[[[1]]]]}, "x" * 700, {"text": "c"}]
    found = list(items(io.BytesIO(json.dumps(long).encode()), 100))
    assert [size > len(raw) for raw, size in found] == [True, False, True, False, True, False]
    assert [size for _, size in found] == [len(json.dumps(item)) + (i > 0) for i, item in enumerate(long)]
    assert all(len(raw) <= 101 for raw, _ in found)
    with pytest.raises(Damaged, match="within a string"):
        list(items(io.BytesIO(b'[{"a": "' + b"x" * 10_000), 100))


def test_brackets_without_end_are_one_bad_item(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    deep = '{"text":' * 300_000 + "1" + "}" * 300_000
    path.write_text(f'[{{"text": "one"}}, {deep}, {{"text": "two"}}]')
    documents, account = read(Files(files=[str(path)], bad_share=1.0))
    assert [d.text for d in documents] == ["one", "two"]
    assert [(bad.reason, bad.detail) for bad in account.bads] == [("invalid JSON", "nested too deeply")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),  # JSON lines, as C4 and others name them
        ('\n{"text": "a"}\n\n{"text": "b"}', ["a", "b"]),
        ('[{"text": "a"},\n{"text": "b"}]', ["a", "b"]),
        ('{"data": [\n{"text": "a"}]}', ["a"]),
        ('{\n"text": "a"\n}\n', ["a"]),
        ("[]", []),
    ],
)
def test_what_a_json_file_holds_is_seen_from_its_beginning(read: Read, tmp_path: Path, text: str, expected: list[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert [d.text for d in read(Files(files=[str(path)]))[0]] == expected
