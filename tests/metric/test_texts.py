"""The libraries' numbers, on texts whose scores are known."""

from __future__ import annotations

import sys

import pytest

from llmfactory.core.errors import MissingExtra
from llmfactory.metric.texts import bleu, rouge


def test_known_scores():
    same = ["the cat sat on the mat today"]
    assert bleu(same, same) == pytest.approx({"bleu": 100.0, "chrf": 100.0})
    assert rouge(same, same) == pytest.approx({"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0})
    assert bleu(["cat the"], ["completely different words here"])["bleu"] < 5


def test_rouge_by_hand():
    """Words the, cat, ran against the, cat, sat, down: 2 shared; bigrams 1 of 2 and 3; longest common sequence 2."""
    assert rouge(["the cat ran"], ["the cat sat down"]) == pytest.approx({"rouge1": 4 / 7, "rouge2": 2 / 5, "rougeL": 4 / 7})


def test_the_corpus_counts_as_a_whole_for_bleu():
    """Two sentences that are right in different places: not the mean of the sentences' scores."""
    written, right = ["a b c d e f", "x"], ["a b c d e f", "u v w x y z"]
    alone = [bleu([a], [b])["bleu"] for a, b in zip(written, right, strict=True)]
    assert bleu(written, right)["bleu"] != pytest.approx(sum(alone) / 2)


@pytest.mark.parametrize(("package", "function"), [("sacrebleu", bleu), ("rouge_score.rouge_scorer", rouge)])
def test_a_missing_library_is_named(monkeypatch, package, function):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"llmfactory\[eval\]"):
        function(["a"], ["a"])
