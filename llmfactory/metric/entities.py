"""Of named entities: precision, recall and F1 over whole entities (Tjong Kim Sang and De Meulder 2003, the CoNLL measure).

Tags are IOB2: `B-PER` begins an entity, `I-PER` goes on with one of the same kind, `O` is none. As in the CoNLL script, an `I-`
that continues nothing begins an entity too. An entity is right if its first and last word and its kind are.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmfactory.metric.classes import f1

Entity = tuple[str, int, int]
"""Kind, first word, word behind the last."""


def entities(tags: Sequence[str]) -> set[Entity]:
    """Of one sentence."""
    found: set[Entity] = set()
    kind, start = "", 0
    for place, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        goes_on = mark == "I" and name == kind
        if kind and not goes_on:
            found.add((kind, start, place))
            kind = ""
        if mark in ("B", "I") and not goes_on:
            kind, start = name, place
    return found


def entity_scores(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> dict[str, float]:
    """`precision`, `recall` and `f1` over all sentences."""
    right = said = there = 0
    for ours, theirs in zip(predicted, expected, strict=True):
        a, b = entities(ours), entities(theirs)
        right, said, there = right + len(a & b), said + len(a), there + len(b)
    return {
        "precision": right / said if said else 0.0,
        "recall": right / there if there else 0.0,
        "f1": f1(right, said, there),
    }
