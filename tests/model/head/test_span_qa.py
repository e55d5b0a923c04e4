from __future__ import annotations

import torch

from llmfactory.model.head.spec import SpanQa


def test_two_scores_of_every_token(gpt, build):
    head = build(gpt(head=SpanQa())).head
    hidden = torch.randn(2, 3, 24, dtype=torch.float64)
    assert head.pool(hidden, torch.ones(2, 3), 1) is hidden
    got = head(hidden)
    assert got.shape == (2, 3, 2)
    torch.testing.assert_close(got, hidden @ head.weight.T + head.bias, rtol=1e-12, atol=1e-12)
