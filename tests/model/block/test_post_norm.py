from __future__ import annotations

import torch
from torch import nn

from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import PostNorm


def test_wiring(check_wiring):
    def equation(block, x, f, h, cross):
        x = block.attention_norm(x + f(x))
        if cross is not None:
            x = block.cross_norm(x + cross(x))
        return block.ffn_norm(x + h(x))

    check_wiring(PostNorm(), equation)


def test_each_sub_layer_is_dropped_in_training(check_dropout):
    check_dropout(PostNorm(), branches=3)


def test_nothing_follows_the_last_block(gpt, build):
    model = build(gpt(block=PostNorm()))
    assert isinstance(model.norm, nn.Identity)
    assert not any(name.startswith("norm.") for name, _ in model.named_parameters())
    assert dict(model.chain())["norm"] is model.norm


def test_a_stack_of_it_is_that_of_torch(gpt, build):
    """BERT's encoder is `nn.TransformerEncoderLayer`: here with a causal mask."""
    from llmfactory.core.context import CausalMask, Context
    from llmfactory.model.ffn.spec import Activation, Mlp
    from llmfactory.model.position.spec import None_

    spec = gpt(block=PostNorm(), ffn=Mlp(hidden=40, activation=Activation.gelu), attention=Gqa(n_heads=4, bias=True))
    spec.position = None_()
    model = build(spec)
    x = model.embedding(torch.arange(12).view(2, 6), None)
    for block in model.blocks:
        theirs = nn.TransformerEncoderLayer(24, 4, 40, 0.0, "gelu", batch_first=True, dtype=torch.float64)
        qkv = [getattr(block.attention, name) for name in "qkv"]
        with torch.no_grad():
            theirs.self_attn.in_proj_weight.copy_(torch.cat([map_.weight for map_ in qkv]))
            theirs.self_attn.in_proj_bias.copy_(torch.cat([map_.bias for map_ in qkv]))
        theirs.self_attn.out_proj.load_state_dict(block.attention.o.state_dict())
        for name, part in (("linear1", block.ffn.up), ("linear2", block.ffn.down)):
            getattr(theirs, name).load_state_dict(part.state_dict())
        theirs.norm1.load_state_dict(block.attention_norm.state_dict())
        theirs.norm2.load_state_dict(block.ffn_norm.state_dict())
        mask = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
        want = theirs(x, src_mask=mask, is_causal=True)
        x = block(x, Context(torch.arange(6)[None], CausalMask(6)))
        torch.testing.assert_close(x, want, rtol=1e-12, atol=1e-12)
