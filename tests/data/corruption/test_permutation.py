"""The order in which tokens are predicted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmfactory.core.batch import IGNORE
from llmfactory.data.corruption.chance import row_keys
from llmfactory.data.corruption.permutation import Permutation

END = 256


@pytest.mark.parametrize("one_in", [1, 3, 6])
def test_one_of_k_tokens_of_each_document_is_predicted(random_rows, one_in: int) -> None:
    batch = random_rows(60, 60)
    found = Permutation(60, END, 1 / one_in)(batch, row_keys(0, np.arange(60)))
    assert torch.equal(found["tokens"], batch["tokens"])
    for row in range(60):
        for number in range(1, int(batch["segments"][row].max()) + 1):
            here = (batch["segments"][row] == number) & (batch["tokens"][row] != END)
            order, labels = found["order"][row][here], found["labels"][row][here]
            size = len(order)
            count = min(size - 1, max(1, round(size / one_in))) if size > 1 else 0
            chosen = labels != IGNORE
            assert int(chosen.sum()) == count
            assert sorted(order[chosen].tolist()) == list(range(1, count + 1)), "places of their own, behind the others"
            assert not order[~chosen].any()
            assert torch.equal(labels[chosen], batch["tokens"][row][here][chosen])
    outside = (batch["segments"] == 0) | (batch["tokens"] == END)
    assert not found["order"][outside].any()
    assert (found["labels"][outside] == IGNORE).all()


def test_who_comes_when_is_random(rows) -> None:
    found = Permutation(7, END, 0.5)(rows(7, [[7]] * 4000), row_keys(1, np.arange(4000)))
    order = found["order"].numpy()[:, 1:]
    for place in (1, 2, 3):
        counts = (order == place).sum(0)
        assert abs(counts - 4000 / 6).max() < 130
    both = order[(order[:, 0] > 0) & (order[:, 5] > 0)]
    assert 0.4 < (both[:, 0] < both[:, 5]).mean() < 0.6, "the order is no order of the text"
