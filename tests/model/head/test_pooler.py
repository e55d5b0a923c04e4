from __future__ import annotations

import torch

from llmfactory.model.head.spec import Pooler


def test_tanh_of_the_first_tokens(gpt, build):
    head = build(gpt(head=Pooler())).head
    hidden = torch.randn(1, 5, 24, dtype=torch.float64)
    segments = torch.tensor([[0, 1, 1, 2, 2]])
    got = head(head.pool(hidden, segments, 2))
    torch.testing.assert_close(got, torch.tanh(hidden[:, [1, 3]] @ head.weight.T + head.bias), rtol=1e-12, atol=1e-12)
    assert head.pool(hidden).shape == (1, 1, 24)
