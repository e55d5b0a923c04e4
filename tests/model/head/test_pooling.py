from __future__ import annotations

import pytest
import torch

from llmfactory.model.head.pooling import pooled
from llmfactory.model.head.spec import Pooling

SEGMENTS = torch.tensor([[1, 1, 2, 3, 3, 3, 0], [0, 0, 1, 1, 1, 1, 1]])
"""Three packed documents and padding behind; one document and padding before."""


def plain(hidden, segments, documents, pooling):
    """Document by document."""
    found = torch.zeros(len(hidden), documents, hidden.shape[-1], dtype=hidden.dtype)
    for row in range(len(hidden)):
        for number in range(documents):
            tokens = hidden[row, segments[row] == number + 1]
            if len(tokens):
                found[row, number] = {Pooling.first: tokens[0], Pooling.last: tokens[-1], Pooling.mean: tokens.mean(0)}[pooling]
    return found


@pytest.mark.parametrize("pooling", Pooling)
def test_each_document_of_packed_and_padded_rows(pooling):
    hidden = torch.randn(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    want = plain(hidden, SEGMENTS, 4, pooling)
    torch.testing.assert_close(pooled(hidden, SEGMENTS, 4, pooling), want, rtol=1e-12, atol=1e-14)
    assert want[0, 2].abs().min() > 0
    assert not want[1, 1:].any()


@pytest.mark.parametrize("pooling", Pooling)
def test_rows_without_segments_are_one_document(pooling):
    hidden = torch.randn(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    want = plain(hidden, torch.ones(2, 7), 1, pooling)
    torch.testing.assert_close(pooled(hidden, None, 1, pooling), want, rtol=1e-12, atol=1e-14)


def test_a_long_mean_in_half_precision():
    """Summed in bfloat16, 2000 ones would not pass 256."""
    assert torch.equal(
        pooled(torch.ones(1, 2000, 1, dtype=torch.bfloat16), None, 1, Pooling.mean), torch.ones(1, 1, 1).bfloat16()
    )
