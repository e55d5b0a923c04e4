"""Masked tokens: shares, whole words, nothing outside of the text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmfactory.core.batch import IGNORE
from llmfactory.data.corruption.chance import row_keys, uniform
from llmfactory.data.corruption.masked import Masked
from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.data.tokenizer.words import words

END, MASK = 256, 399


def masked(vocabulary: Vocabulary, width: int, **changes: object) -> Masked:
    fields: dict[str, object] = {"rate": 0.15, "mask_share": 0.8, "random_share": 0.1}
    return Masked(vocabulary, width, **{**fields, **changes})


def slow(batch, keys, rate):
    """The tokens of a row with the smallest numbers, one by one."""
    chosen = torch.zeros_like(batch["tokens"], dtype=torch.bool)
    for row in range(len(keys)):
        numbers = uniform(keys[row : row + 1], batch["tokens"].shape[1], 0)[0]
        text = [c for c, s in enumerate(batch["segments"][row].tolist()) if s and batch["tokens"][row, c] != END]
        count = min(len(text), max(1, round(rate * len(text))))
        for column in sorted(text, key=lambda column: numbers[column])[:count]:
            chosen[row, column] = True
    return chosen


@pytest.mark.parametrize("rate", [0.01, 0.15, 0.9])
def test_the_chosen_tokens_are_the_reference_s(vocabulary, random_rows, rate) -> None:
    batch, keys = random_rows(40, 60), row_keys(1, np.arange(60))
    found = masked(vocabulary, 40, rate=rate)(batch, keys)
    chosen = slow(batch, keys, rate)
    assert torch.equal(found["labels"] != IGNORE, chosen)
    assert torch.equal(found["labels"][chosen], batch["tokens"][chosen])
    assert torch.equal(found["tokens"][~chosen], batch["tokens"][~chosen])
    for name in ("segments", "positions"):
        assert torch.equal(found[name], batch[name])
    assert torch.equal(torch.where(chosen, found["labels"], found["tokens"]), batch["tokens"]), "the text comes back"


def test_shares(vocabulary, random_rows) -> None:
    batch, keys = random_rows(128, 400), row_keys(2, np.arange(400))
    found = masked(vocabulary, 128)(batch, keys)
    chosen = found["labels"] != IGNORE
    text = (batch["segments"] > 0) & (batch["tokens"] != END)
    assert (chosen.sum() / text.sum()).item() == pytest.approx(0.15, abs=0.004)
    shown, told = found["tokens"][chosen], found["labels"][chosen]
    assert (shown == MASK).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (shown == told).float().mean().item() == pytest.approx(0.1 + 0.1 / 257, abs=0.02)
    other = shown[(shown != MASK) & (shown != told)]
    assert other.max() < 257
    assert len(other.unique()) > 150, "random tokens are of the whole vocabulary of the text"


@pytest.mark.parametrize(("mask_share", "random_share"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_one_way_only(vocabulary, random_rows, mask_share, random_share) -> None:
    found = masked(vocabulary, 50, mask_share=mask_share, random_share=random_share)(
        random_rows(50, 40), row_keys(0, np.arange(40))
    )
    chosen = found["labels"] != IGNORE
    assert ((found["tokens"] == MASK)[chosen].all().item()) == (mask_share == 1)
    same = (found["tokens"] == found["labels"])[chosen].float().mean()
    assert same == 1 if not mask_share + random_share else same < 0.05


def test_whole_words(vocabulary, random_rows) -> None:
    batch, keys = random_rows(120, 60, mean=60), row_keys(0, np.arange(60))
    found = masked(vocabulary, 120, whole_words=True, mask_share=1.0, random_share=0.0)(batch, keys)
    table = words(vocabulary.tokenizer)
    several = 0
    for row in range(60):
        tokens, segments = batch["tokens"][row].tolist(), batch["segments"][row].tolist()
        chosen = (found["labels"][row] != IGNORE).tolist()
        for column in range(1, 120):
            inside = segments[column] and segments[column] == segments[column - 1]
            if inside and table.opens_V[tokens[column]] and table.closes_V[tokens[column - 1]]:
                assert chosen[column] == chosen[column - 1], "a word is cut"
                several += chosen[column]
        text = sum(bool(s) and t != END for t, s in zip(tokens, segments, strict=True))
        longest = 40
        assert max(1, round(0.15 * text)) <= sum(chosen) < round(0.15 * text) + longest or not text
    assert several > 100


def test_words_of_two_documents_are_two(vocabulary, rows) -> None:
    """A row that goes on in the middle of a word beside another document's first letter."""
    batch = rows(12, [[6, 6]], goes_on=True)
    batch["tokens"][0] = torch.tensor([*b"abcdef", *b"ghijkl"])
    for number in range(30):
        chosen = masked(vocabulary, 12, whole_words=True, rate=0.3)(batch, row_keys(0, np.array([number])))["labels"][0] != IGNORE
        assert chosen.tolist() in ([True] * 6 + [False] * 6, [False] * 6 + [True] * 6)


def test_rows_without_text(vocabulary, rows) -> None:
    found = masked(vocabulary, 8)(rows(8, [[], [1], [2]]), row_keys(0, np.arange(3)))
    assert (found["labels"] != IGNORE).sum(1).tolist() == [0, 0, 1]


def test_spare_numbers(vocabulary, random_rows) -> None:
    keys = row_keys(0, np.arange(5))
    found = masked(vocabulary, 30, spare=True)(random_rows(30, 5), keys)
    assert found["uniform"].shape == (5, 30)
    assert not np.isin(found["uniform"].numpy(), np.concatenate([uniform(keys, 30, stream) for stream in range(3)])).any()
    assert "uniform" not in masked(vocabulary, 30)(random_rows(30, 5), keys)
