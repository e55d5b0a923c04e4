from __future__ import annotations

from torch import nn

from llmfactory.model.block.spec import Sandwich


def test_wiring(check_wiring):
    def equation(block, x, f, h, cross):
        x = x + block.attention_out_norm(f(block.attention_norm(x)))
        if cross is not None:
            x = x + block.cross_out_norm(cross(block.cross_norm(x)))
        return x + block.ffn_out_norm(h(block.ffn_norm(x)))

    check_wiring(Sandwich(), equation)


def test_each_sub_layer_is_dropped_in_training(check_dropout):
    check_dropout(Sandwich(), branches=3)


def test_a_norm_follows_the_last_block(llama, build):
    model = build(llama(block=Sandwich()))
    assert not isinstance(model.norm, nn.Identity)
    assert sum("norm.weight" in name for name, _ in model.named_parameters()) == 4 * 3 + 1
