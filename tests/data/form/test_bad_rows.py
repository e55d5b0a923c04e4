"""Rows that are no records, through all of preparing: set aside with file, line and reason, or too many of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.clean.spec import CleanSpec, Exact
from llmfactory.data.form.spec import Chat, TooLong, Unwritable
from llmfactory.data.pack.spec import BestFit
from llmfactory.data.prepare import prepare
from llmfactory.data.prepared import Prepared
from llmfactory.data.source.spec import Files
from llmfactory.data.spec import Corpus
from llmfactory.data.tokenizer.spec import Bytes
from llmfactory.run.preparing import totals

GOOD = [{"instruction": f"question {number}", "output": "answer " * number} for number in range(1, 19)]
BAD: list[Any] = [{"messages": [{"role": "assistant", "content": "a"}]}, {"text": "x"}]


def made(tmp_path: Path, rows: list[Any], bad_share: float, clean: dict[str, CleanSpec], **form: Any) -> Prepared:
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "my.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    source = Files(files=[str(path)], field=None, bad_share=bad_share)
    cache = str(tmp_path / "cache")
    spec = Corpus(
        source=source,
        form=Chat(**form),
        clean=clean,
        tokenizer=Bytes(),
        pack=BestFit(),
        seq_len=256,
        held_out=0.3,
        cache=cache,
        workers=1,
    )
    return prepare(spec, 300)


STEPS: list[dict[str, CleanSpec]] = [{}, {"exact": Exact()}]


@pytest.mark.parametrize("clean", STEPS, ids=["one segment", "two segments"])
def test_within_the_share_they_are_counted_and_kept_aside(tmp_path: Path, clean: dict[str, CleanSpec]) -> None:
    rows = [*GOOD[:3], BAD[0], *GOOD[3:], BAD[1], "{"]
    prepared = made(tmp_path, rows, 0.2, clean)
    assert prepared.counts["train"]["documents"] + prepared.counts["held_out"]["documents"] == len(GOOD)
    about = json.loads(next((tmp_path / "cache").rglob("manifest.json")).read_text(encoding="utf-8"))
    told = json.dumps(about)
    assert "wrong order of roles" in told
    assert "no known format" in told


@pytest.mark.parametrize("clean", STEPS, ids=["one segment", "two segments"])
def test_above_the_share_the_first_is_named(tmp_path: Path, clean: dict[str, CleanSpec]) -> None:
    rows = [*GOOD[:3], BAD[0], *GOOD[3:], BAD[1], "{"]
    with pytest.raises(UserError, match=r"3 of 21 records cannot be read, more than data.source.bad_share=0.1.*my.jsonl, line"):
        made(tmp_path, rows, 0.1, clean)
    with pytest.raises(UserError, match=r"my.jsonl, line 4: wrong order of roles.*data.source.bad_share=0.01"):
        made(tmp_path, rows[:-1], 0.0, clean)


def test_what_the_template_cannot_write_is_named_or_left_out_and_counted(tmp_path: Path) -> None:
    tools = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        "tools": [{"name": "weather"}],
    }
    rows = [*GOOD[:3], tools, *GOOD[3:]]
    with pytest.raises(
        UserError, match=r"my.jsonl, line 4: .* does not write tools, .*template=chatml.*data.form.unwritable=drop"
    ):
        made(tmp_path, rows, 0.0, {})
    prepared = made(tmp_path, rows, 0.0, {}, unwritable=Unwritable.drop)
    parts = [prepared.counts[part] for part in ("train", "held_out")]
    assert sum(part["unwritable"] for part in parts) == 1
    assert sum(part["too_long"] for part in parts) == 0
    assert totals(prepared)["unwritable"] == 1
    assert "too_long" not in totals(prepared)
    assert sum(source.part(name).inputs > 0 for source in prepared.sources.values() for name in ("train", "held_out")) == 2


def test_what_is_left_out_or_cut_for_its_length_is_counted(tmp_path: Path) -> None:
    sizes = [len(f"|User: {row['instruction']}\n\nAssistant: {row['output']}|") for row in GOOD]
    for way in (TooLong.drop, TooLong.right):
        prepared = made(tmp_path / way.value, GOOD, 0.0, {}, max_tokens=100, too_long=way)
        found = {key: sum(prepared.counts[part][key] for part in ("train", "held_out")) for key in ("too_long", "cut", "targets")}
        longer = [size - 100 for size in sizes if size > 100]
        assert longer
        assert found["too_long"] == (len(longer) if way is TooLong.drop else 0)
        assert found["cut"] == (0 if way is TooLong.drop else sum(longer))
