from __future__ import annotations

import torch

from llmfactory.model.norm.spec import None_


def test_changes_nothing_and_owns_nothing():
    part = None_().build(8)
    x = torch.randn(2, 8, dtype=torch.bfloat16)
    assert part(x) is x
    assert part.declare() == {}
    assert list(part.parameters()) == []


def test_a_model_without_norms(gpt, build):
    """Each sub-layer reads the residual stream itself, and so does the head."""
    model = build(gpt(norm=None_(), n_layers=1))
    x = torch.randn(1, 5, 24, dtype=torch.float64)
    block = model.blocks[0]
    assert block.attention_norm(x) is x
    assert model.norm(x) is x
    assert not [name for name, _ in model.named_parameters() if "norm" in name]
