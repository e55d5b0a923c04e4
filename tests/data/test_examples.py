"""Files of labelled examples: read, checked, split, numbered, kept."""

from __future__ import annotations

import json

import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.examples import read_examples, saved_labels
from llmfactory.data.spec import Labelled
from llmfactory.data.task.spec import Classify
from llmfactory.data.tokenizer.spec import ByteBpe, Bytes


@pytest.fixture
def file(tmp_path):
    lines = [json.dumps({"text": f"text number {n}", "label": ["no", "yes", "maybe"][n % 3]}) for n in range(60)]
    (tmp_path / "all.jsonl").write_text("\n".join(lines) + "\n\n")
    return tmp_path / "all.jsonl"


def spec(file, **changes):
    return Labelled(**{"task": Classify(), "files": [str(file)], "tokenizer": Bytes(), "seq_len": 32, "held_out": 0.2, **changes})


def test_every_example_is_on_one_side(file):
    data = read_examples(spec(file), 300)
    assert len(data.records["train"]) + len(data.records["held_out"]) == 60
    assert 5 <= len(data.records["held_out"]) <= 20
    assert data.task.labels == ["maybe", "no", "yes"]
    assert data.counts["train"]["examples"] == len(data.of("train", 32)) == len(data.records["train"])
    more = file.with_name("more.jsonl")
    more.write_text(file.read_text() + json.dumps({"text": "one more", "label": "no"}) + "\n")
    again = read_examples(spec(more), 300)
    assert [r for r in again.records["held_out"] if r["text"] != "one more"] == data.records["held_out"]
    assert again.name != data.name
    assert read_examples(spec(file), 300).name == data.name


def test_files_of_their_own_to_evaluate_on(file, tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "x", "label": "new"}) + "\n")
    data = read_examples(spec(file, held_out_files=[str(tmp_path / "test.jsonl")]), 300)
    assert len(data.records["train"]) == 60
    assert data.task.labels == ["maybe", "new", "no", "yes"]


def test_a_tokenizer_is_trained_on_the_texts_that_are_trained_on(file):
    data = read_examples(spec(file, tokenizer=ByteBpe()), 300)
    (tokens,) = [row.fields["tokens"] for row in data.rows["train"][:1]]
    assert len(tokens) < len(data.records["train"][0]["text"])


def test_class_names_stay_with_the_checkpoint(file, tmp_path):
    data = read_examples(spec(file), 300)
    data.save(tmp_path / "tokenizer")
    assert saved_labels(tmp_path / "tokenizer") == ["maybe", "no", "yes"]
    only = tmp_path / "only.jsonl"
    only.write_text(json.dumps({"text": "x", "label": "yes"}) + "\n")
    later = read_examples(spec(only, held_out=0.0), 300, saved_labels(tmp_path / "tokenizer"))
    assert later.rows["train"][0].fields["labels"] == [2]
    only.write_text(json.dumps({"text": "x", "label": "other"}) + "\n")
    with pytest.raises(UserError, match="'other' is not one of the model's: maybe, no, yes"):
        read_examples(spec(only, held_out=0.0), 300, saved_labels(tmp_path / "tokenizer"))
    assert saved_labels(tmp_path) is None


def test_a_bad_line_is_named_or_within_the_share_dropped(file):
    file.write_text(file.read_text() + '{"text": 1}\nnot json\n')
    with pytest.raises(UserError, match=r"all\.jsonl, line 62: bad example: the field 'text' is int"):
        read_examples(spec(file), 300)
    data = read_examples(spec(file, bad_share=0.1), 300)
    assert {reason: entry["documents"] for reason, entry in data.counts["dropped"].items()} == {
        "bad example": 1,
        "invalid JSON": 1,
    }
    with pytest.raises(UserError, match=r"2 of 62 records"):
        read_examples(spec(file, bad_share=0.01), 300)


def test_nothing_to_train_on(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no example to train on"):
        read_examples(spec(tmp_path / "empty.jsonl"), 300)
