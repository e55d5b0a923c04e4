from __future__ import annotations

import pytest

from llmfactory.metric.entities import entities, entity_scores


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O O", set()),
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("B-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("I-PER I-PER O", {("PER", 0, 2)}),
        ("B-PER I-LOC I-LOC", {("PER", 0, 1), ("LOC", 1, 3)}),
        ("O B-ORG", {("ORG", 1, 2)}),
    ],
)
def test_entities_of_tags(tags, found):
    assert entities(tags.split()) == found


def test_scores_count_whole_entities():
    expected = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["O", "B-ORG"]]
    assert entity_scores(predicted, expected) == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3})
    assert entity_scores([["O"]], [["O"]]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    only_one = entity_scores([["B-PER", "I-PER", "O", "O"], ["O", "O"]], expected)
    assert only_one == pytest.approx({"precision": 1.0, "recall": 1 / 3, "f1": 1 / 2})
