"""One document a row: against a plain reference, and against concatenated rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.data.pack.rows import Rows
from llmfactory.data.pack.spec import Concat, Document
from llmfactory.data.tokens import TokenFile

LENGTHS = [0, 3, 1, 17, 40, 7, 8, 9, 0, 5]


def reference(tokens: TokenFile, seq_len: int) -> list[dict[str, list[int]]]:
    rows = []
    for index in range(tokens.documents):
        text, end = tokens.document(index), tokens.end_id
        pairs = list(zip([end, *text], [*text, end], strict=True))
        for start in range(0, len(pairs), seq_len):
            piece = pairs[start : start + seq_len]
            pad = seq_len - len(piece)
            rows.append(
                {
                    "tokens": [token for token, _ in piece] + [end] * pad,
                    "labels": [label for _, label in piece] + [IGNORE] * pad,
                    "positions": [*range(len(piece)), *[0] * pad],
                    "segments": [1] * len(piece) + [0] * pad,
                }
            )
    return rows


@pytest.mark.parametrize("seq_len", [2, 3, 8, 9, 41, 100])
def test_rows_equal_the_reference(token_file: Callable[..., TokenFile], seq_len: int) -> None:
    tokens = token_file(LENGTHS)
    rows, expected = Document().build(tokens, seq_len), reference(tokens, seq_len)
    assert not rows.isolated
    assert len(rows) == len(expected)
    for order in (np.arange(len(rows)), np.arange(len(rows))[::-1].copy()):
        for key, value in rows.read(order).items():
            assert value.tolist() == [expected[index][key] for index in order], key


def whole(rows: Rows) -> dict[str, Tensor]:
    return rows.read(np.arange(len(rows)))


def pairs(batch: dict[str, Tensor]) -> Counter[tuple[int, int]]:
    kept = batch["labels"] != IGNORE
    return Counter(zip(batch["tokens"][kept].tolist(), batch["labels"][kept].tolist(), strict=True))


@pytest.mark.parametrize("seq_len", [2, 8, 100])
def test_packed_and_document_rows_hold_the_same_targets(token_file: Callable[..., TokenFile], seq_len: int) -> None:
    tokens = token_file(LENGTHS)
    packed, single = Concat().build(tokens, seq_len), Document().build(tokens, seq_len)
    assert pairs(whole(packed)) == pairs(whole(single))
    assert packed.targets == single.targets == sum(pairs(whole(packed)).values()) == sum(LENGTHS) + len(LENGTHS)


def test_documents_that_fit_have_the_same_positions_packed_or_single(token_file: Callable[..., TokenFile]) -> None:
    tokens = token_file([3, 2, 9])
    packed, single = whole(Concat().build(tokens, tokens.targets)), whole(Document().build(tokens, 10))
    kept = single["segments"] != 0
    assert packed["positions"].flatten().tolist() == single["positions"][kept].tolist()
    assert packed["tokens"].flatten().tolist() == single["tokens"][kept].tolist()


def test_there_is_no_other_row(token_file: Callable[..., TokenFile]) -> None:
    rows = Document().build(token_file(LENGTHS), 8)
    with pytest.raises(IndexError):
        rows.read(np.array([len(rows)]))
    assert len(Document().build(token_file([]), 8)) == 0


@pytest.mark.parametrize("block", [1, 2, 3, 64])
def test_rows_are_found_among_many_blocks(
    token_file: Callable[..., TokenFile], monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr("llmfactory.data.pack.document.BLOCK", block)
    tokens = token_file(LENGTHS * 5)
    rows, expected = Document().build(tokens, 8), reference(tokens, 8)
    assert len(rows) == len(expected)
    assert rows.read(np.arange(len(rows)))["tokens"].tolist() == [row["tokens"] for row in expected]
