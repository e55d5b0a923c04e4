"""Records to rows: what stands where, what is cut, and every record that is none named."""

from __future__ import annotations

import numpy as np
import pytest

from llmfactory.core.batch import IGNORE
from llmfactory.data.task.spec import Answer, Classify, Rewrite, Tag
from llmfactory.data.task.task import BadRecord, ExampleRows
from llmfactory.data.tokenizer.bytes import ByteTokenizer

END = ByteTokenizer().end_id


def rows(spec, record, seq_len=40, labels=()):
    task = spec.build()
    task.check(record)
    task.labels = list(labels)
    return list(task.rows(7, record, ByteTokenizer(), seq_len))


def test_classify_one_text_and_two():
    (row,) = rows(Classify(), {"text": "ab", "label": "yes"}, labels=["no", "yes"])
    assert row.fields["tokens"] == [END, 97, 98, END]
    assert row.fields["labels"] == [1]
    assert row.fields["positions"] == [0, 1, 2, 3]
    assert "types" not in row.fields
    (row,) = rows(Classify(pair="other"), {"text": "ab", "other": "c", "label": 3}, labels=["3"])
    assert row.fields["tokens"] == [END, 97, 98, END, 99, END]
    assert row.fields["types"] == [0, 0, 0, 0, 1, 1]


def test_the_longer_text_is_cut():
    (row,) = rows(Classify(pair="other"), {"text": "a" * 30, "other": "bb", "label": 0}, seq_len=10, labels=["0"])
    assert row.fields["tokens"] == [END, *b"aaaaa", END, *b"bb", END]


def test_tags_stand_on_the_first_token_of_a_word():
    (row,) = rows(Tag(), {"words": ["ab", "c"], "tags": ["B-X", "O"]}, labels=["B-X", "O"])
    assert row.fields["tokens"] == [END, *b"ab c", END]
    assert row.fields["labels"] == [IGNORE, 0, IGNORE, 1, IGNORE, IGNORE]
    assert row.extra["firsts"] == [1, 3]
    (short,) = rows(Tag(), {"words": ["ab", "cdef"], "tags": ["O", "O"]}, seq_len=6, labels=["O"])
    assert short.extra["firsts"] == [1]  # the second word does not fit
    assert len(short.extra["tags"]) == 2


def test_an_answer_is_found_by_its_characters():
    context = "in Köln stands a dome"
    record = {"question": "where?", "context": context, "answers": {"text": ["Köln"], "answer_start": [3]}}
    (row,) = rows(Answer(), record)
    first, last = row.fields["labels"]
    assert bytes(row.fields["tokens"][first : last + 1]).decode() == "Köln"
    spans = row.extra["spans"]
    offset = row.extra["offset"]
    assert context[spans[first - offset][0] : spans[last - offset][1]] == "Köln"
    assert row.fields["types"][offset - 1 : offset + 1] == [0, 1]


def test_a_long_text_is_read_in_windows_that_overlap():
    context = "".join(chr(48 + i) for i in range(60))  # every character once
    record = {"question": "q", "context": context, "answers": {"text": [context[40:45]], "answer_start": [40]}}
    found = rows(Answer(stride=5), record, seq_len=24)
    windows = [bytes(row.fields["tokens"][row.extra["offset"] : -1]).decode() for row in found]
    assert windows[0] == context[:20]
    assert windows[1][:5] == windows[0][-5:]
    assert windows[-1].endswith(context[-1])
    joined = windows[0] + "".join(window[5:] for window in windows[1:])
    assert joined == context
    inside = [row for row in found if row.fields["labels"] != [0, 0]]
    assert inside
    for row in inside:
        first, last = row.fields["labels"]
        assert bytes(row.fields["tokens"][first : last + 1]).decode() == context[40:45]
    for row, window in zip(found, windows, strict=True):
        assert (context[40:45] in window) == (row in inside)


def test_a_question_without_an_answer_points_at_the_start():
    (row,) = rows(Answer(), {"question": "q", "context": "text", "answers": {"text": [], "answer_start": []}})
    assert row.fields["labels"] == [0, 0]


def test_rewrite_reads_one_text_and_writes_the_other():
    (row,) = rows(Rewrite(prefix="de: "), {"source": "ab", "target": "xy"})
    assert row.fields["source"] == [*b"de: ab", END]
    assert row.fields["tokens"] == [END, *b"xy"]
    assert row.fields["labels"] == [*b"xy", END]
    (cut,) = rows(Rewrite(), {"source": "a" * 30, "target": "b" * 30}, seq_len=10)
    assert len(cut.fields["source"]) == len(cut.fields["labels"]) == 10
    assert cut.fields["labels"][-1] == END


@pytest.mark.parametrize(
    ("spec", "record", "message"),
    [
        (Classify(), {"label": 1}, "'text' is missing"),
        (Classify(), {"text": 3, "label": 1}, "int, not a text"),
        (Classify(), {"text": "a", "label": None}, "neither a text nor a whole number"),
        (Tag(), {"words": ["a"], "tags": []}, "1 words have 0 tags"),
        (Tag(), {"words": "a", "tags": []}, "no list of texts"),
        (Answer(), {"question": "q", "context": "abc", "answers": {"text": ["b"], "answer_start": [2]}}, "does not stand at"),
        (Answer(), {"question": "q", "context": "abc", "answers": "b"}, "is no {'text'"),
        (Rewrite(), {"source": "", "target": "x"}, "a text is empty"),
    ],
)
def test_a_record_that_is_none_is_named(spec, record, message):
    with pytest.raises(BadRecord, match=message):
        spec.build().check(record)


def test_a_class_that_training_does_not_know():
    with pytest.raises(BadRecord, match="'maybe' is not one of the model's: no, yes"):
        rows(Classify(), {"text": "a", "label": "maybe"}, labels=["no", "yes"])


def test_rows_are_padded():
    made = [
        row for record in ({"text": "ab", "label": 0}, {"text": "c", "label": 1}) for row in rows(Classify(), record, labels="01")
    ]
    batch = ExampleRows(made, 6, END).read(np.array([1, 0]))
    assert batch["tokens"].tolist() == [[END, 99, END, END, END, END], [END, 97, 98, END, END, END]]
    assert batch["segments"].tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[1], [0]]
    made = [
        row for words in (["ab"], ["c", "d"]) for row in rows(Tag(), {"words": words, "tags": ["O"] * len(words)}, labels=["O"])
    ]
    labels = ExampleRows(made, 6, END).read(np.array([0, 1]))["labels"]
    assert labels.tolist() == [[IGNORE, 0] + [IGNORE] * 4, [IGNORE, 0, 0] + [IGNORE] * 3]
    assert ExampleRows(made, 6, END).targets == 3


def test_fields_go_by_the_names_that_are_given():
    def same(spec, named, record, labels=()):
        renamed = {f"my_{name}": value for name, value in record.items()}
        ours, theirs = rows(spec, record, labels=labels), rows(named, renamed, labels=labels)
        assert ours == theirs

    same(Classify(), Classify(text="my_text", label="my_label"), {"text": "ab", "label": "x"}, ["x"])
    same(Tag(), Tag(words="my_words", tags="my_tags"), {"words": ["ab"], "tags": ["O"]}, ["O"])
    answer = {"question": "q", "context": "abc", "answers": {"text": ["b"], "answer_start": [1]}}
    same(Answer(), Answer(question="my_question", context="my_context", answers="my_answers"), answer)
    same(Rewrite(), Rewrite(source="my_source", target="my_target"), {"source": "ab", "target": "c"})
