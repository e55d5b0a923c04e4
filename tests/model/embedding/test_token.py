from __future__ import annotations

import torch

from llmfactory.core.sharding import Layout
from llmfactory.model.embedding.spec import Token


def test_looks_up():
    part = Token().build(11, 4, 0.3)
    part.weight.data.normal_()
    tokens = torch.tensor([[3, 10], [0, 3]])
    got = part(tokens, None)
    assert got.shape == (2, 2, 4)
    for b, t in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert torch.equal(got[b, t], part.weight[tokens[b, t]])


def test_declaration():
    declared = Token().build(11, 4, 0.3).declare()["weight"]
    assert (declared.layout, declared.decay, declared.start.std) == (Layout.vocab, True, 0.3)
