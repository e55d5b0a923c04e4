"""GLM's rows: text with blanks, the blanks behind it, two positions, a prefix."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from llmfactory.core.batch import IGNORE
from llmfactory.data.corruption.blank_infilling import BlankInfilling
from llmfactory.data.corruption.chance import row_keys

END, SHORT, SENTENCE, WHOLE, START, STOP = 256, 399, 398, 397, 396, 395
MASKS = {SHORT, SENTENCE, WHOLE}


def blanks(vocabulary, width, **changes) -> BlankInfilling:
    return BlankInfilling(vocabulary, width, **{"rate": 0.15, "mean_span": 3.0, "sentences": 0.0, "rest": 0.0, **changes})


def restored(found, row, number):
    """(text, spans in the order of the row, mask) of a document; every position, label and prefix is checked on the way."""
    columns = np.flatnonzero(found["segments"][row].numpy() == number)
    assert (np.diff(columns) == 1).all()
    tokens, labels = found["tokens"][row].numpy()[columns], found["labels"][row].numpy()[columns]
    first, second = (found["positions"][row].numpy()[axis][columns] for axis in (0, 1))
    prefix = found["prefix"][row].numpy()[columns]
    front = int(prefix.sum())
    assert prefix.tolist() == [1] * front + [0] * (len(columns) - front)
    assert tokens[0] == END
    assert first[:front].tolist() == list(range(front))
    assert not second[:front].any()
    assert (labels[:front] == IGNORE).all()
    starts = [*np.flatnonzero(tokens == START), len(columns)]
    assert starts[0] == front or len(starts) == 1
    spans: dict[int, list[int]] = {}
    order = []
    for a, b in itertools.pairwise(starts):
        span = tokens[a + 1 : b].tolist()
        assert labels[a:b].tolist() == [*span, STOP]
        assert second[a:b].tolist() == list(range(1, b - a + 1))
        assert set(first[a:b]) == {first[a]}
        assert tokens[first[a]] in MASKS, "the place of its blank"
        spans[int(first[a])] = span
        order.append(int(first[a]))
    text: list[int] = []
    for place, token in enumerate(tokens[1:front].tolist(), start=1):
        text += spans.pop(place) if token in MASKS else [token]
    assert not spans
    return text, order, {token for token in tokens[:front].tolist() if token in MASKS}


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("kind", [{}, {"sentences": 1.0, "rate": 0.4}, {"rest": 1.0}, {"sentences": 0.4, "rest": 0.3}])
def test_the_text_comes_back(vocabulary, random_rows, texts, kind, goes_on) -> None:
    corruption = blanks(vocabulary, 80, **kind)
    batch = random_rows(corruption.raw_length, 60, mean=30, goes_on=goes_on)
    found = corruption(batch, row_keys(0, np.arange(60)))
    assert found["positions"].shape == (60, 2, 80)
    lost = total = 0
    for row in range(60):
        documents = [text for text in texts(batch, row) if len(text) > 1]
        count = int(found["segments"][row].max())
        total += sum(map(len, documents))
        lost += sum(map(len, documents[count:]))
        for number, whole in enumerate(documents[:count], start=1):
            text, order, _ = restored(found, row, number)
            assert text == whole[: len(text)]
            assert order, "something is missing"
            lost += len(whole) - len(text)
        padding = found["segments"][row] == 0
        assert (found["labels"][row][padding] == IGNORE).all()
        assert not found["prefix"][row][padding].any()
        assert not found["positions"][row][:, padding].any()
    assert lost < 0.1 * total


def test_share_and_lengths_of_short_spans(vocabulary, rows) -> None:
    corruption = blanks(vocabulary, 300)
    width = corruption.raw_length
    found = corruption(rows(width, [[width]] * 100), row_keys(0, np.arange(100)))
    lengths: Counter[int] = Counter()
    orders = []
    for row in range(100):
        labels = found["labels"][row].numpy()
        targets = labels[labels != IGNORE]
        stops = np.flatnonzero(targets == STOP)
        lengths.update(np.diff([-1, *stops]) - 1)
        assert (targets != STOP).sum() == round(0.15 * (width - 1))
        text, order, masks = restored(found, row, 1)
        assert masks == {SHORT}
        assert len(text) == width - 1
        orders.append(order)
    total = sum(lengths.values())
    expected = np.array([3.0**k / np.prod(np.arange(1, k + 1)) for k in range(1, 6)]) / (np.e**3 - 1)
    assert np.array([lengths[k] / total for k in range(1, 6)]) == pytest.approx(expected, abs=0.04)
    ascending = [np.mean(np.diff(order) > 0) for order in orders if len(order) > 1]
    assert 0.4 < np.mean(ascending) < 0.6, "blanks come in random order"


def test_whole_sentences(vocabulary, rows) -> None:
    corruption = blanks(vocabulary, 60, rate=0.3, sentences=1.0)
    batch = rows(40, [[40]] * 100)
    import torch

    batch["tokens"][:, 1:] = torch.tensor([*b"aaaaaaaa.bbbbbb!cccc?ddddddddd.eeeeefff."])[:39]
    found = corruption(batch, row_keys(0, np.arange(100)))
    seen: Counter[str] = Counter()
    for row in range(100):
        _text, _order, masks = restored(found, row, 1)
        assert masks == {SENTENCE}
        labels = found["labels"][row].numpy()
        pieces = "".join(chr(t) if t < 256 else "|" for t in labels[labels != IGNORE]).split("|")[:-1]
        assert all(len(set(piece.rstrip(".!?"))) == 1 or piece.startswith("eeeee") for piece in pieces), "cut sentences"
        assert sum(map(len, pieces)) >= round(0.3 * 39)
        assert sum(map(len, pieces[:-1])) < 39
        seen.update(piece[0] for piece in pieces)
    assert set(seen) == set("abcde")


def test_a_document_of_one_sentence_gets_short_spans(vocabulary, rows) -> None:
    batch = rows(30, [[30]] * 5)
    batch["tokens"][:, 1:] = ord("a")
    found = blanks(vocabulary, 40, sentences=1.0)(batch, row_keys(0, np.arange(5)))
    assert all(restored(found, row, 1)[2] == {SHORT} for row in range(5))


def test_the_second_half_or_more(vocabulary, rows) -> None:
    corruption = blanks(vocabulary, 40, rest=1.0)
    found = corruption(rows(31, [[31]] * 2000), row_keys(0, np.arange(2000)))
    lengths = ((found["labels"] != IGNORE).sum(1) - 1).numpy()
    assert lengths.min() == 15
    assert lengths.max() == 30
    assert abs(np.bincount(lengths, minlength=31)[15:] - 2000 / 16).max() < 50
    assert all(restored(found, row, 1)[2] == {WHOLE} for row in range(50))


def test_rows_are_full_enough(vocabulary, rows) -> None:
    for width in (64, 512):
        corruption = blanks(vocabulary, width)
        raw = corruption.raw_length
        found = corruption(rows(raw, [[raw]] * 20), row_keys(0, np.arange(20)))
        assert (found["segments"] > 0).float().mean() > 0.85
