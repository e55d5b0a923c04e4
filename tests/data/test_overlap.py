"""Overlap by sequences of words, against sets of tuples."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from llmfactory.data.overlap import N, overlap


def reference(held_out: list[str], training: list[str]) -> list[float]:
    def words(text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())

    def grams(text: list[str], n: int) -> list[tuple[str, ...]]:
        return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]

    found = []
    for text in map(words, held_out):
        n = min(N, len(text))
        known = {gram for other in training for gram in grams(words(other), n)}
        found.append(sum(gram in known for gram in grams(text, n)) / len(grams(text, n)) if n else 0.0)
    return found


def test_it_equals_the_reference() -> None:
    draw = random.Random(0)
    pool = [" ".join(draw.choices(["ab", "cd", "ef", "gh", "ij", "kl"], k=20)) for _ in range(30)]

    def text() -> str:
        return ", ".join(draw.choices(pool, k=draw.randrange(4))) + " " + " ".join(draw.choices("xyzw", k=draw.randrange(20)))

    held_out, training = [text() for _ in range(40)], [text() for _ in range(60)]
    shares = overlap(held_out, training)
    assert shares.tolist() == pytest.approx(reference(held_out, training))
    assert 0 < (shares > 0).sum() < len(shares)


@pytest.mark.parametrize(
    ("held_out", "training", "share"),
    [
        ("one two three", "zero One, TWO three! four", 1.0),
        ("one two three", "one two four three", 0.0),
        ("", "anything", 0.0),
        ("?!", "?!", 0.0),
        ("a b c d e f g h i j k l m n", "a b c d e f g h i j k l m x", 0.5),
        ("天地玄黄宇宙洪荒日月盈昃辰宿", "前天地玄黄，宇宙洪荒日月盈昃辰。", 0.5),
        ("naïve été", "un été: naïve été", 1.0),
    ],
)
def test_cases(held_out: str, training: str, share: float) -> None:
    assert overlap([held_out], [training]).tolist() == [share]


def test_nothing() -> None:
    assert overlap([], ["text"]).shape == (0,)
    assert overlap(["text"], []).tolist() == [0.0]
    assert np.array_equal(overlap(["some text"], ["", "text"]), [0.0])
