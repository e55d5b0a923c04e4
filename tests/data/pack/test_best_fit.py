"""Best-fit packing: against best-fit decreasing done piece by piece, and as rows."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmfactory.core.batch import IGNORE
from llmfactory.core.errors import UserError
from llmfactory.data.pack import plan as plan_module
from llmfactory.data.pack.best_fit import best_fit
from llmfactory.data.pack.rows import shares
from llmfactory.data.pack.spec import BestFit, Concat
from llmfactory.data.tokens import TokenFile

LENGTHS = [0, 3, 1, 17, 40, 1, 1, 2, 9, 0, 5, 7, 7, 7]


def reference(sizes: list[int], seq_len: int) -> list[int]:
    """What is left in each row: one piece at a time, from the longest, into the row with the least room that is enough."""
    rooms: list[int] = []
    for size in sorted(sizes, reverse=True):
        place = bisect_left(rooms, size)
        room = rooms.pop(place) if place < len(rooms) else seq_len
        insort(rooms, room - size)
    return rooms


@pytest.mark.parametrize("seq_len", [1, 2, 7, 64, 1000])
def test_rows_are_as_full_as_the_reference_s(seq_len: int) -> None:
    generator = np.random.default_rng(seq_len)
    for _ in range(40):
        sizes = generator.integers(1, generator.integers(1, seq_len + 1) + 1, generator.integers(1, 200))
        order, pieces = best_fit(sizes, seq_len)
        assert sorted(order.tolist()) == list(range(len(sizes)))
        rows = np.split(sizes[order], pieces.cumsum()[:-1])
        assert sorted(seq_len - row.sum() for row in rows) == reference(sizes.tolist(), seq_len)
        assert all(len(row) for row in rows)


def test_a_case_by_hand() -> None:
    order, pieces = best_fit(np.array([2, 8, 3, 5, 2, 10]), 10)
    rows = np.split(np.array([2, 8, 3, 5, 2, 10])[order], pieces.cumsum()[:-1])
    assert [row.tolist() for row in rows] == [[10], [8, 2], [5, 3, 2]]


@pytest.mark.parametrize("seq_len", [2, 3, 8, 41, 100])
def test_every_target_stands_once_in_its_own_document(token_file: Callable[..., TokenFile], seq_len: int) -> None:
    tokens = token_file(LENGTHS)
    rows = BestFit().build(tokens, seq_len)
    batch = rows.read(np.arange(len(rows)))
    assert rows.isolated
    found: Counter[tuple[int, int]] = Counter()
    for line in range(len(rows)):
        place = 0
        for segment in range(1, int(batch["segments"][line].max()) + 1):
            here = (batch["segments"][line] == segment).nonzero().flatten()
            assert here.tolist() == list(range(place, place + len(here)))
            place += len(here)
            assert batch["positions"][line][here].tolist() == list(range(len(here)))
            text, labels = batch["tokens"][line][here].tolist(), batch["labels"][line][here].tolist()
            assert text[1:] == labels[:-1]
            assert 0 not in text[1:]  # an end begins a document
            found.update(zip(text, labels, strict=True))
        padding = slice(place, None)
        assert not batch["segments"][line][padding].any()
        assert not batch["positions"][line][padding].any()
        assert (batch["labels"][line][padding] == IGNORE).all()
    assert found == Counter(zip(tokens.tokens[:-1].tolist(), tokens.tokens[1:].tolist(), strict=True))


def test_no_document_that_fits_is_cut(token_file: Callable[..., TokenFile]) -> None:
    tokens = token_file(LENGTHS)
    rows = BestFit().build(tokens, 18)
    batch = rows.read(np.arange(len(rows)))
    begun = {
        int(label)
        for label, position in zip(batch["labels"].flatten(), batch["positions"].flatten(), strict=True)
        if position == 0
    }
    first = {tokens.document(i)[0] for i in range(tokens.documents) if tokens.document(i)}
    assert first <= begun
    assert shares(rows)["cut_documents"] == 1 / len(LENGTHS)  # that of 40
    assert shares(rows)["padding"] == pytest.approx((batch["segments"] == 0).double().mean().item())
    assert shares(Concat().build(tokens, 18))["cut_documents"] > 1 / len(LENGTHS)


def test_a_large_corpus_is_planned_in_windows_and_kept(
    token_file: Callable[..., TokenFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = token_file(LENGTHS)
    once = BestFit().build(tokens, 16)
    monkeypatch.setattr(plan_module, "WINDOW", 4)
    kept = BestFit().build(tokens, 16)
    files = sorted(tokens.path.parent.glob("*best_fit-16.*"))
    assert [file.suffix for file in files] == [".first", ".lock", ".size", ".start"]
    assert len(kept) >= len(once)
    for rows in (once, kept):
        batch = rows.read(np.arange(len(rows)))
        kept_labels = batch["labels"][batch["labels"] != IGNORE]
        assert Counter(kept_labels.tolist()) == Counter(tokens.tokens[1:].tolist())
    before = [file.stat().st_mtime_ns for file in files]
    again = BestFit().build(tokens, 16)
    assert [file.stat().st_mtime_ns for file in files] == before
    assert again.read(np.arange(len(again)))["tokens"].tolist() == kept.read(np.arange(len(kept)))["tokens"].tolist()


def test_a_plan_that_cannot_be_kept_says_so(token_file: Callable[..., TokenFile], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "WINDOW", 4)
    tokens = token_file(LENGTHS)
    (tokens.path.parent / "0.best_fit-16.lock").mkdir()
    with pytest.raises(UserError, match=r"best_fit cannot be written beside .*data.cache="):
        BestFit().build(tokens, 16)


def test_nothing_gives_no_row(token_file: Callable[..., TokenFile]) -> None:
    assert len(BestFit().build(token_file([]), 8)) == 0
    with pytest.raises(IndexError):
        BestFit().build(token_file([2]), 8).read(np.array([1]))


def test_ten_documents_of_a_window_of_nothing_else(tmp_path: Path) -> None:
    """Documents of ends alone: each is one input."""
    np.zeros(11, "<u2").tofile(tmp_path / "x.bin")
    np.arange(11).astype("<i8").tofile(tmp_path / "x.offsets")
    rows = BestFit().build(TokenFile.beside(tmp_path / "x.bin", np.dtype("<u2"), 0), 4)
    assert len(rows) == 3
    assert rows.read(np.array([0]))["segments"].tolist() == [[1, 2, 3, 4]]
