from __future__ import annotations

import torch

from llmfactory.core.context import CausalMask, Context


def test_wiring(family, build):
    block = build(family()).blocks[0]
    x = torch.randn(2, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    context = Context(torch.arange(5)[None], CausalMask(5))
    model = build(family())
    context = model.position.prepare(context, x.dtype)
    middle = x + block.attention(block.attention_norm(x), context)
    torch.testing.assert_close(block(x, context), middle + block.ffn(block.ffn_norm(middle), context), rtol=0, atol=0)


def test_each_sub_layer_is_dropped_in_training(family, build):
    block = build(family(dropout=0.9)).blocks[0]
    x = torch.randn(64, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    context = Context(torch.arange(5)[None], CausalMask(5))
    context = build(family()).position.prepare(context, x.dtype)
    whole = build(family()).blocks[0](x, context)
    block.eval()
    torch.testing.assert_close(block(x, context), whole, rtol=0, atol=0)
    block.train()
    torch.manual_seed(0)
    untouched = (block(x, context) == x).double().mean()  # both sub-layers dropped: 0.9 x 0.9
    assert abs(untouched - 0.81) < 0.02
