"""BART's damage: masks for spans, sentences in another order, texts that begin in their middle."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from llmfactory.core.batch import IGNORE
from llmfactory.data.corruption.chance import row_keys
from llmfactory.data.corruption.denoising import Denoising

END, MASK = 256, 399


def denoising(vocabulary, width, **changes) -> Denoising:
    fields = {"rate": 0.3, "mean_span": 3.0, "permute_sentences": False, "rotate": 0.0}
    return Denoising(vocabulary, width, **{**fields, **changes})


def read(found, row):
    """(source, text) of each document, ends off."""
    pairs = []
    for number in range(1, int(found["segments"][row].max()) + 1):
        source = found["source"][row][found["source_segments"][row] == number].tolist()
        here = found["segments"][row] == number
        labels = found["labels"][row][here].tolist()
        assert found["tokens"][row][here].tolist() == [END, *labels[:-1]]
        assert source[-1] == labels[-1] == END
        pairs.append((source[:-1], labels[:-1]))
    return pairs


def spans_by_gaps(source: list[int], text: list[int]) -> int:
    """How many tokens are missing; fails where the source is not the text with runs replaced by masks."""
    assert len([token for token in source if token != MASK]) <= len(text)
    import re

    pattern = "".join("(.*)" if token == MASK else re.escape(chr(token)) for token in source)
    assert re.fullmatch(pattern, "".join(map(chr, text)), re.DOTALL)
    return len(text) - sum(token != MASK for token in source)


def test_the_target_is_the_text_and_the_source_has_masks_for_spans(vocabulary, random_rows, texts) -> None:
    batch = random_rows(60, 60)
    found = denoising(vocabulary, 60)(batch, row_keys(0, np.arange(60)))
    for row in range(60):
        documents = [text for text in texts(batch, row) if text]
        pairs = read(found, row)
        assert len(documents) - len(pairs) in (0, 1)
        for whole, (source, text) in zip(documents, pairs, strict=False):
            assert text == whole[: len(text)]
            assert text == whole or whole is documents[len(pairs) - 1]
            assert spans_by_gaps(source, text) == round(0.3 * len(text))
            assert len(source) <= len(text)
    padding = found["segments"] == 0
    assert (found["labels"][padding] == IGNORE).all()


def test_span_lengths_are_poisson(vocabulary, rows) -> None:
    """Letters that occur once, so that the missing ones between two masks can be told."""
    batch = rows(200, [[200]] * 300)
    batch["tokens"][:, 1:] = torch.arange(199)
    found = denoising(vocabulary, 200)(batch, row_keys(0, np.arange(300)))
    lengths: Counter[int] = Counter()
    empty = 0
    for row in range(300):
        ((source, _),) = read(found, row)
        last, masks = -1, 0
        for token in [*source, 199]:
            if token == MASK:
                masks += 1
                continue
            missing = token - last - 1
            assert bool(missing) <= masks
            empty += masks - bool(missing)
            if missing:
                lengths[missing] += 1
            last, masks = token, 0
    total = sum(lengths.values())
    expected = np.array([3.0**k / np.prod(np.arange(1, k + 1)) for k in range(1, 7)]) / (np.e**3 - 1)
    assert np.array([lengths[k] / total for k in range(1, 7)]) == pytest.approx(expected, abs=0.03)
    assert empty / (empty + total) == pytest.approx(np.exp(-3), abs=0.015)


def test_sentences_change_places(vocabulary, rows, texts) -> None:
    batch = rows(40, [[40]] * 200)
    batch["tokens"][:, 1:] = torch.tensor(list(b"aaaaaaaa. bbbbbb! cccc? ddddddddd. eeeee"))[:39]
    found = denoising(vocabulary, 40, rate=0.0, permute_sentences=True)(batch, row_keys(0, np.arange(200)))
    orders: Counter[str] = Counter()
    for row in range(200):
        ((source, text),) = read(found, row)
        assert sorted(source) == sorted(text)
        letters = "".join(dict.fromkeys(chr(token) for token in source if chr(token).isalpha()))
        assert len(letters) == 5
        orders[letters] += 1
        assert "bbbbbb!" in "".join(map(chr, source))
    assert len(orders) > 60


def test_documents_are_not_mixed(vocabulary, rows) -> None:
    batch = rows(30, [[15, 15]] * 50)
    batch["tokens"][:, 1:15], batch["tokens"][:, 16:] = torch.tensor([*b"a.a.a.a.a.a.a."]), torch.tensor([*b"b.b.b.b.b.b.b."])
    found = denoising(vocabulary, 30, permute_sentences=True, rotate=1.0)(batch, row_keys(0, np.arange(50)))
    for row in range(50):
        for letter, (source, text) in zip("ab", read(found, row), strict=True):
            assert {chr(token) for token in source if token != MASK} <= {letter, "."}
            assert chr(text[0]) == letter


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_rotation(vocabulary, rows, share: float) -> None:
    batch = rows(21, [[21]] * 1000)
    batch["tokens"][:, 1:] = torch.arange(100, 120)
    found = denoising(vocabulary, 21, rate=0.0, rotate=share)(batch, row_keys(0, np.arange(1000)))
    firsts: Counter[int] = Counter()
    for row in range(1000):
        ((source, text),) = read(found, row)
        start = source[0] - 100
        assert source == text[start:] + text[:start]
        firsts[start] += 1
    expected = np.full(20, share * 1000 / 20)
    expected[0] += (1 - share) * 1000
    assert np.array([firsts[k] for k in range(20)]) == pytest.approx(expected, abs=30)
