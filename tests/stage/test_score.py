"""Predictions read back from a model's logits: a model whose head says what the test wants."""

from __future__ import annotations

import json

import pytest
import torch

from llmfactory.core.batch import IGNORE
from llmfactory.data.examples import read_examples
from llmfactory.data.spec import Labelled
from llmfactory.data.task.spec import Answer, Classify, Figures, Rewrite, Tag
from llmfactory.data.tokenizer.spec import Bytes
from llmfactory.parallel.mesh import World
from llmfactory.precision.spec import Fp32
from llmfactory.stage import score as score_module
from llmfactory.stage.score import score

WORLD = World(torch.device("cpu"))


def examples(tmp_path, task, train, held_out, seq_len=48):
    for name, records in (("train", train), ("held", held_out)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    spec = Labelled(
        task=task,
        files=[str(tmp_path / "train.jsonl")],
        held_out_files=[str(tmp_path / "held.jsonl")],
        tokenizer=Bytes(),
        seq_len=seq_len,
    )
    return read_examples(spec, 300)


class Oracle:
    """Its hidden vectors, which its head hands on as logits, are `say(batch)`."""

    training = False

    def __init__(self, say):
        self.say, self.head = say, Said()

    def train(self, mode=True):
        return self

    eval = train

    def context(self, batch):
        self.batch = batch

    def __call__(self, tokens, context):
        return self.say(self.batch)


class Said:
    def pool(self, hidden, segments, documents):
        return hidden[:, :documents]

    def __call__(self, hidden):
        return hidden


def run(model, data, seq_len=48, batch_size=2):
    return score(model, data, seq_len, Fp32().build("cpu"), WORLD, batch_size)


def one_hot(numbers, size):
    return torch.nn.functional.one_hot(torch.as_tensor(numbers), size).float()


def test_classes(tmp_path):
    train = [{"text": "a", "label": "no"}, {"text": "b", "label": "yes"}]
    held = [{"text": text, "label": label} for text, label in zip("abcd", ["no", "yes", "yes", "no"], strict=True)]
    data = examples(tmp_path, Classify(), train, held)
    # Says yes to b and c only when the second byte is b: right on a, b, d.
    say = Oracle(lambda batch: one_hot((batch["tokens"][:, 1:2] == 98).long(), 3))
    assert run(say, data) == pytest.approx({"accuracy": 3 / 4, "macro_f1": (4 / 5 + 2 / 3) / 2})


def test_tags_are_read_at_the_first_token_of_each_word(tmp_path):
    train = [{"words": ["x"], "tags": [tag]} for tag in ("B-P", "I-P", "O")]
    held = [{"words": ["aa", "bb", "c"], "tags": ["B-P", "I-P", "O"]}, {"words": ["dd"], "tags": ["B-P"]}]
    data = examples(tmp_path, Tag(), train, held)
    assert data.task.labels == ["B-P", "I-P", "O"]

    def right(batch):  # the labels themselves; nonsense where there is none
        labels = batch["labels"].clone()
        labels[labels == IGNORE] = 0
        return one_hot(labels, 5)

    assert run(Oracle(right), data) == {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0}
    wrong = run(Oracle(lambda batch: one_hot(torch.full_like(batch["labels"], 2), 5)), data)
    assert wrong == pytest.approx({"accuracy": 1 / 4, "precision": 0.0, "recall": 0.0, "f1": 0.0})


def test_words_that_do_not_fit_are_not_found(tmp_path):
    train = [{"words": ["x"], "tags": ["B-P"]}]
    data = examples(tmp_path, Tag(), train, [{"words": ["a", "bcdefgh"], "tags": ["B-P", "B-P"]}], seq_len=6)
    found = run(Oracle(lambda batch: one_hot(torch.zeros_like(batch["labels"]), 1)), data, seq_len=6)
    assert found == pytest.approx({"accuracy": 1 / 2, "precision": 1.0, "recall": 1 / 2, "f1": 2 / 3})


CONTEXT = "".join(chr(48 + i) for i in range(60))
ANSWERED = {"question": "q", "context": CONTEXT, "answers": {"text": [CONTEXT[40:45]], "answer_start": [40]}}
UNANSWERED = {"question": "q", "context": CONTEXT, "answers": {"text": [], "answer_start": []}}


def ends(batch):
    """The right first and last tokens."""
    scores = torch.zeros(*batch["tokens"].shape, 2)
    for row, (first, last) in enumerate(batch["labels"].tolist()):
        scores[row, first, 0] = scores[row, last, 1] = 9.0
    return scores


def test_spans_over_windows(tmp_path):
    data = examples(tmp_path, Answer(stride=8), [ANSWERED], [ANSWERED], seq_len=30)
    assert len(data.rows["held_out"]) > 2
    assert run(Oracle(ends), data, seq_len=30) == {"exact_match": 1.0, "f1": 1.0}
    short = examples(tmp_path, Answer(stride=8, longest=3), [ANSWERED], [ANSWERED], seq_len=30)
    assert run(Oracle(ends), short, seq_len=30)["exact_match"] == 0.0  # a span of five tokens is not allowed


def test_no_answer_is_one_if_training_has_such_questions(tmp_path):
    data = examples(tmp_path, Answer(stride=8), [ANSWERED, UNANSWERED], [UNANSWERED, ANSWERED], seq_len=30)
    assert run(Oracle(ends), data, seq_len=30) == {"exact_match": 1.0, "f1": 1.0}
    data = examples(tmp_path, Answer(stride=8), [ANSWERED], [UNANSWERED], seq_len=30)
    assert run(Oracle(ends), data, seq_len=30)["exact_match"] == 0.0


def test_an_answer_never_ends_before_it_begins(tmp_path):
    data = examples(
        tmp_path, Answer(), [ANSWERED], [{**ANSWERED, "context": "abcdef", "answers": {"text": ["bcd"], "answer_start": [1]}}]
    )

    def crossed(batch):
        scores = torch.zeros(*batch["tokens"].shape, 2)
        scores[:, 7, 0], scores[:, 3, 1] = 9.0, 9.0  # would begin at e and end at a
        scores[:, 6, 1], scores[:, 4, 0] = 5.0, 8.5  # b to d is the best that is allowed
        return scores

    assert run(Oracle(crossed), data) == {"exact_match": 1.0, "f1": 1.0}


@pytest.mark.parametrize(("beams", "figures"), [(1, Figures.bleu), (3, Figures.rouge)])
def test_texts_are_written_and_compared(tmp_path, monkeypatch, beams, figures):
    held = [{"source": "ab cd", "target": "the cat sat here"}, {"source": "x", "target": "one two three four"}]
    data = examples(tmp_path, Rewrite(beams=beams, figures=figures), held, held)
    asked = {}

    def write(model, prompts, **options):
        asked.update(options, prompts=prompts)
        return [list(row["target"].encode()) for row in held]

    monkeypatch.setattr(score_module, "beam_search" if beams > 1 else "generate", write)
    found = run(Oracle(None), data)
    assert found == pytest.approx({"bleu": 100.0, "chrf": 100.0} if beams == 1 else {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0})
    assert asked["prompts"] == [[*b"ab cd", 256], [*b"x", 256]]
    assert asked["end_id"] == asked["start_id"] == 256
    assert asked["max_tokens"] == 48
