"""Of one class for each example: accuracy and F1.

For a class, precision p is the share of its predictions that are right, recall r the share of its examples that were found, and
F1 = 2 p r / (p + r) (van Rijsbergen 1979). Macro-F1 is the mean over the classes that occur among references or predictions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence


def accuracy(predicted: Sequence[Hashable], expected: Sequence[Hashable]) -> float:
    """Share of examples whose class is right."""
    return sum(map(_equal, predicted, expected)) / len(expected)


def macro_f1(predicted: Sequence[Hashable], expected: Sequence[Hashable]) -> float:
    """Mean of the classes' F1."""
    right = Counter(p for p, e in zip(predicted, expected, strict=True) if p == e)
    said, there = Counter(predicted), Counter(expected)
    classes = said.keys() | there.keys()
    return sum(f1(right[name], said[name], there[name]) for name in classes) / len(classes)


def f1(right: int, said: int, there: int) -> float:
    """2 p r / (p + r) of `right` correct ones among `said` predictions and `there` references; 0 where nothing is right."""
    return 2 * right / (said + there) if right else 0.0


def _equal(a: Hashable, b: Hashable) -> bool:
    return a == b
