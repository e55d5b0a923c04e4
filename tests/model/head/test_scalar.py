from __future__ import annotations

import pytest
import torch

from llmfactory.model.head.spec import Pooling, Scalar


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pooling", [None, *Pooling])
def test_of_every_token_or_of_each_document(gpt, build, pooling, bias):
    head = build(gpt(head=Scalar(pooling=pooling, bias=bias))).head
    hidden, segments = torch.randn(1, 5, 24, dtype=torch.float64), torch.tensor([[0, 1, 1, 2, 2]])
    vectors = {
        None: hidden,
        Pooling.first: hidden[:, [1, 3]],
        Pooling.last: hidden[:, [2, 4]],
        Pooling.mean: (hidden[:, [1, 3]] + hidden[:, [2, 4]]) / 2,
    }[pooling]
    want = vectors @ head.weight.T + (head.bias if bias else 0.0)
    got = head(head.pool(hidden, segments, 2))
    assert got.shape == (1, 5 if pooling is None else 2, 1)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert (head.bias is not None) is bias
