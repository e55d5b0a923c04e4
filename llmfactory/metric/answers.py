"""Of short answers: exact match and word overlap (Rajpurkar et al. 2016, section 6.1).

Both compare texts in lower case, without punctuation, without the articles a, an, the, and with single spaces. Of several right
answers the nearest counts; no right answer at all means that the question has none, and then only an empty one is right.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from llmfactory.metric.classes import f1

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """What is compared."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, right: Sequence[str]) -> float:
    """1 if it is one of the right ones."""
    return float(any(normalize(answer) == normalize(one) for one in right or [""]))


def overlap_f1(answer: str, right: Sequence[str]) -> float:
    """F1 of the words that the answer shares with the right one that is nearest."""
    return max(_overlap(normalize(answer).split(), normalize(one).split()) for one in right or [""])


def _overlap(answer: list[str], right: list[str]) -> float:
    if not answer or not right:
        return float(answer == right)
    shared = sum((Counter(answer) & Counter(right)).values())
    return f1(shared, len(answer), len(right))
