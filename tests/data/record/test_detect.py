"""What is told of the first rows of a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmfactory.data.form.spec import Chat, Text
from llmfactory.data.pack.spec import BestFit
from llmfactory.data.record.detect import LOOKED_AT, SHOWN, detect, told
from llmfactory.data.record.first_rows import detected
from llmfactory.data.record.record import Kind
from llmfactory.data.source.spec import Files
from llmfactory.data.spec import Mixture
from llmfactory.data.tokenizer.spec import Bytes

ALPACA = {"instruction": "q", "input": "", "output": "a" * SHOWN}
SHAREGPT = {"conversations": [{"from": "gpt", "value": "a"}]}


def texts(*rows: Any) -> list[str]:
    return [row if isinstance(row, str) else json.dumps(row) for row in rows]


def test_the_most_frequent_format_is_told_with_its_share_and_an_example() -> None:
    found = detect(texts(SHAREGPT, ALPACA, ALPACA, "{", {"x": 1}))
    assert (found.format, found.kind, found.share) == ("alpaca", Kind.conversation, 0.4)
    assert found.formats == {"alpaca": 2, "sharegpt": 1, "unknown": 2}
    assert list(found.formats)[-1] == "unknown"
    assert (found.rows, found.readable) == (5, 2)
    assert found.fields == ("input", "instruction", "output")
    assert found.example == json.dumps(ALPACA)[:SHOWN]
    assert found.reasons == {"wrong order of roles": 1, "invalid JSON": 1, "no known format": 1}
    lines = dict(told(found))
    assert lines["format"] == "alpaca (a conversation)"
    assert lines["formats of the first rows"] == "alpaca 40%, sharegpt 20%, unknown 40%"
    assert lines["rows that can be read"] == "2 of 5"
    assert "1 × invalid JSON" in lines["what is wrong with others"]


def test_only_the_kinds_that_are_looked_for_count() -> None:
    both = {"instruction": "q", "output": "a", "chosen": "a", "rejected": "b"}
    assert detect(texts(both)).format == "text_pair"
    assert detect(texts(both), [Kind.conversation]).format == "alpaca"
    assert detect(texts(both), [Kind.judged]).format == "unknown"


def test_nothing_and_no_format() -> None:
    nothing = detect([])
    assert (nothing.rows, nothing.format, nothing.share, nothing.kind) == (0, "unknown", 0.0, None)
    assert told(nothing) == [("format", "no rows")]
    assert told(detect(texts({"x": 1})))[0] == ("format", "unknown (of no kind that is known)")


def test_no_more_rows_are_read_than_needed() -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield json.dumps(ALPACA)

    assert detect(endless()).rows == LOOKED_AT == taken


def test_the_first_rows_of_every_source_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"frage": "q", "antwort": "a"}\n{"x": 1}\n', encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps([SHAREGPT, ALPACA]), encoding="utf-8")
    sources = {name: Files(files=[str(tmp_path / name)], field=None) for name in ("a.jsonl", "b.json")}
    spec = Mixture(
        sources=sources,
        form=Chat(fields={"prompt": "frage", "response": "antwort"}),
        tokenizer=Bytes(),
        pack=BestFit(),
        seq_len=64,
    )
    found = {name: dict(lines) for name, lines in detected(spec).items()}
    assert found["a.jsonl"]["format"] == "prompt_response (a conversation)"
    assert found["a.jsonl"]["rows that can be read"] == "1 of 2"
    assert found["b.json"]["formats of the first rows"] == "alpaca 50%, sharegpt 50%"
    assert detected(replace(spec, form=Text())) == {}
