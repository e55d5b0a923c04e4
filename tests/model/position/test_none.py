from __future__ import annotations

import torch

from llmfactory.core.context import CausalMask, Context
from llmfactory.model.position.spec import None_, Rope


def test_changes_nothing(frame):
    part = None_().build(frame())
    x, context = torch.randn(1, 3, 8), Context(torch.arange(3)[None], CausalMask(3))
    q, k = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)
    assert part.embed(x, context) is x
    assert part.prepare(context, x.dtype) is context
    turned = part.rotate(q, k, context)
    assert turned[0] is q
    assert turned[1] is k
    assert part.declare() == {}


def test_a_model_without_positions_sees_order_by_the_mask_alone(llama, build):
    """Swapping two earlier tokens leaves the last one unchanged in one layer without positions, not with rotary ones."""
    tokens = torch.tensor([[5, 6, 7, 8]])
    swapped = torch.tensor([[6, 5, 7, 8]])
    context = Context(torch.arange(4)[None], CausalMask(4))
    for position, same in ((None_(), True), (Rope(), False)):
        model = build(llama(n_layers=1, position=position))
        assert torch.allclose(model(tokens, context)[:, -1], model(swapped, context)[:, -1], rtol=0, atol=1e-9) is same
