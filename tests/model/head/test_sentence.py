from __future__ import annotations

import pytest
import torch

from llmfactory.model.head.spec import Pooling, Sentence


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", [Pooling.mean, Pooling.first])
def test_vectors_of_documents(gpt, build, pooling, normalize):
    head = build(gpt(head=Sentence(pooling=pooling, normalize=normalize))).head
    hidden, segments = torch.randn(1, 5, 24, dtype=torch.float64), torch.tensor([[1, 1, 2, 2, 0]])
    want = torch.stack([x.mean(1) if pooling is Pooling.mean else x[:, 0] for x in (hidden[:, :2], hidden[:, 2:4])], 1)
    if normalize:
        want = want / want.square().sum(-1, keepdim=True).sqrt()
    torch.testing.assert_close(head(head.pool(hidden, segments, 2)), want, rtol=1e-12, atol=1e-12)
    assert list(head.parameters()) == []
