"""Answers to other prompts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from llmfactory.core.batch import IGNORE
from llmfactory.core.errors import UserError
from llmfactory.data.form.mismatched import MismatchedRows, mismatched
from llmfactory.data.pack.rows import Rows

END = 0
RECORDS = [([11, 12, 13], [1, 2]), ([14], [3, 4, 5, 6]), ([15, 16], [7]), ([17, 18], [8, 9])]
"""Prompt (behind the end before it) and answer, which an end follows."""


class Judged(Rows):
    isolated = ragged = False

    def __init__(self, records: list[tuple[list[int], list[int]]] = RECORDS, width: int = 8) -> None:
        self.records, self.seq_len, self.file = records, width, SimpleNamespace(end_id=END)  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.records)

    def read(self, indices: Any) -> dict[str, torch.Tensor]:
        fields = {
            name: np.zeros((len(indices), self.seq_len), np.int64) for name in ("tokens", "labels", "positions", "segments")
        }
        fields["labels"][:] = IGNORE
        for row, index in enumerate(indices):
            prompt, answer = self.records[index]
            read = [END, *prompt, *answer]
            learned = [IGNORE] * len(prompt) + answer + [END]
            fields["tokens"][row, : len(read)], fields["labels"][row, : len(read)] = read, learned
            fields["positions"][row, : len(read)], fields["segments"][row, : len(read)] = np.arange(len(read)), 1
        return {name: torch.from_numpy(field) for name, field in fields.items()}


def texts(batch: dict[str, torch.Tensor], prefix: str = "other_") -> list[tuple[list[int], list[int]]]:
    """What is read, and what is learned, without padding."""
    found = []
    for tokens, labels, segments in zip(*(batch[f"{prefix}{name}"] for name in ("tokens", "labels", "segments")), strict=True):
        found.append((tokens[segments > 0].tolist(), labels[labels != IGNORE].tolist()))
    return found


def test_each_prompt_is_followed_by_another_one_s_answer() -> None:
    batch = MismatchedRows(Judged()).read(np.array([0, 1, 3]))
    assert texts(batch) == [
        ([END, 11, 12, 13, 7], [7, END]),
        ([END, 14, 8, 9], [8, 9, END]),
        ([END, 17, 18, 3, 4, 5, 6], [3, 4, 5, 6, END]),
    ]
    assert batch["other_positions"][0].tolist() == [0, 1, 2, 3, 4, 0, 0, 0]
    labels = batch["other_labels"][0].tolist()
    assert labels == [IGNORE, IGNORE, IGNORE, 7, END, IGNORE, IGNORE, IGNORE]
    own = Judged().read(np.array([0, 1, 3]))
    assert all(torch.equal(batch[name], field) for name, field in own.items())


def test_it_depends_on_the_data_alone() -> None:
    """Neither on the sample's number, nor on who else is read along; every answer is used once."""
    rows = MismatchedRows(Judged())
    whole = rows.read(np.arange(4))
    for number in range(4):
        alone = rows.draw(np.array([number]), np.array([77 * number]))
        assert texts(alone) == [texts(whole)[number]]
    assert sorted(learned for _, learned in texts(whole)) == sorted([*answer, END] for _, answer in RECORDS)
    assert all(one != other for one, other in zip(texts(whole), texts(whole, ""), strict=True))


def test_what_does_not_fit_is_cut_off_on_the_right() -> None:
    batch = MismatchedRows(Judged(width=6)).read(np.array([3]))
    assert texts(batch) == [([END, 17, 18, 3, 4, 5], [3, 4, 5, 6])]


def test_rows_as_long_as_the_longest() -> None:
    own = Judged()
    mixed = mismatched(own.read(np.array([0, 1])), own.read(np.array([2, 3])), 8, fixed=False, end_id=END)
    assert mixed["tokens"].shape == (2, 5)


def test_one_record_has_no_other() -> None:
    with pytest.raises(UserError, match="only one record"):
        MismatchedRows(Judged(RECORDS[:1]))
