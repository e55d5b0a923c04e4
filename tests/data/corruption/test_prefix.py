"""Prefixes of documents."""

from __future__ import annotations

import numpy as np
import torch

from llmfactory.core.batch import IGNORE
from llmfactory.data.corruption.chance import row_keys
from llmfactory.data.corruption.prefix import Prefix


def test_each_document_has_a_prefix_and_targets_after_it(random_rows) -> None:
    batch = random_rows(40, 80, goes_on=True)
    found = Prefix(40)(batch, row_keys(0, np.arange(80)))
    assert torch.equal(found["tokens"], batch["tokens"])
    for row in range(80):
        segments = batch["segments"][row]
        for number in range(1, int(segments.max()) + 1):
            here = segments == number
            prefix, labels = found["prefix"][row][here], found["labels"][row][here]
            size = int(prefix.sum())
            assert 1 <= size <= len(prefix)
            assert prefix.tolist() == [1] * size + [0] * (len(prefix) - size), "it stands at the beginning"
            assert labels.tolist() == [IGNORE] * (size - 1) + batch["labels"][row][here].tolist()[size - 1 :]
        assert not found["prefix"][row][segments == 0].any()
        assert (found["labels"][row][segments == 0] == IGNORE).all()


def test_every_length_is_equally_likely(rows) -> None:
    found = Prefix(8)(rows(8, [[8]] * 8000), row_keys(3, np.arange(8000)))
    counts = np.bincount(found["prefix"].sum(1).numpy(), minlength=9)
    assert counts[0] == 0
    assert abs(counts[1:] - 1000).max() < 150
