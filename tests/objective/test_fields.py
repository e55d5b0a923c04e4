"""Each field of an objective changes the rows that it makes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from llmfactory.data.corruption.chance import row_keys
from llmfactory.data.corruption.corruption import CorruptedRows
from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.data.pack.rows import Rows
from llmfactory.data.tokenizer.bytes import ByteTokenizer
from llmfactory.objective.spec import (
    BlankInfilling,
    Denoising,
    Masked,
    ObjectiveSpec,
    Permutation,
    ReplacedToken,
    SpanCorruption,
    Ul2,
)

TEXT = b"Some words of text, in a sentence. Then another one! Is this the last? No: here it ends. "
CASES: list[tuple[ObjectiveSpec, str, Any]] = [
    (Masked(), "rate", 0.3),
    (Masked(), "mask_share", 0.5),
    (Masked(), "random_share", 0.2),
    (Masked(), "whole_words", True),
    (SpanCorruption(), "rate", 0.3),
    (SpanCorruption(), "mean_span", 6.0),
    (SpanCorruption(), "sentinels", 3),
    (Ul2(), "sentinels", 3),
    (Denoising(), "rate", 0.5),
    (Denoising(), "mean_span", 1.0),
    (Denoising(), "permute_sentences", False),
    (Denoising(), "rotate", 0.5),
    (Permutation(), "one_in", 3),
    (BlankInfilling(), "rate", 0.3),
    (BlankInfilling(), "mean_span", 1.0),
    (BlankInfilling(), "sentence_share", 0.5),
    (BlankInfilling(), "document_share", 0.5),
    (ReplacedToken(), "rate", 0.3),
]


def rows_of(spec: ObjectiveSpec) -> list[Any]:
    corruption = spec.build().corruption(Vocabulary(400, ByteTokenizer()), 64)
    assert corruption is not None
    width = corruption.raw_length
    tokens = torch.tensor([list((TEXT * 3)[start : start + width]) for start in range(40)])
    batch = {
        "tokens": tokens,
        "labels": tokens.roll(-1, 1),
        "segments": torch.ones_like(tokens),
        "positions": torch.arange(width).expand_as(tokens),
    }
    found = corruption(batch, row_keys(0, np.arange(40)))
    return [corruption.raw_length, {name: field.tolist() for name, field in found.items()}]


@pytest.mark.parametrize(("spec", "field", "value"), CASES, ids=lambda item: str(item)[:30])
def test_the_field_changes_the_rows(spec: ObjectiveSpec, field: str, value: Any) -> None:
    changed = replace(spec, **{field: value})
    assert rows_of(spec) == rows_of(spec)
    assert rows_of(spec) != rows_of(changed)


class Same(Rows):
    """Ten equal rows."""

    isolated = True

    def __init__(self) -> None:
        self.file, self.seq_len = None, 64  # type: ignore[assignment]

    def __len__(self) -> int:
        return 10

    def read(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        tokens = torch.tensor([list(TEXT[:64])] * len(indices))
        ones = torch.ones_like(tokens)
        return {"tokens": tokens, "labels": tokens, "segments": ones, "positions": ones.cumsum(1) - 1}


@pytest.mark.parametrize("static", [False, True])
def test_static_masks_stay_in_the_next_epoch(static: bool) -> None:
    corruption = Masked(static=static).build().corruption(Vocabulary(400, ByteTokenizer()), 64)
    assert corruption is not None
    rows = object.__new__(CorruptedRows)
    rows.rows, rows.corruption, rows.seed = Same(), corruption, 0
    first, second = (rows.draw(np.arange(10), np.arange(10) + 10 * epoch)["labels"] for epoch in (0, 1))
    assert torch.equal(first, second) == static
