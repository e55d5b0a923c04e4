from __future__ import annotations

import pytest

from llmfactory.core.errors import ConfigError
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import Parallel


def test_wiring_with_a_norm_for_each(check_wiring):
    def equation(block, x, f, h, cross):
        return x + f(block.attention_norm(x)) + h(block.ffn_norm(x))

    check_wiring(Parallel(shared_norm=False), equation, crosses=(False,))


def test_wiring_with_one_norm(check_wiring):
    def equation(block, x, f, h, cross):
        return x + f(block.attention_norm(x)) + h(block.attention_norm(x))

    check_wiring(Parallel(shared_norm=True), equation, crosses=(False,))


@pytest.mark.parametrize("shared", [True, False])
def test_each_sub_layer_is_dropped_in_training(shared, check_dropout):
    check_dropout(Parallel(shared_norm=shared), branches=2)


@pytest.mark.parametrize("shared", [True, False])
def test_norms_that_there_are(shared, llama):
    names = [name for name, _ in llama(block=Parallel(shared_norm=shared), n_layers=1).build().named_parameters()]
    norms = [name for name in names if "norm" in name]
    first = ["blocks.0.attention_norm.weight"] + ([] if shared else ["blocks.0.ffn_norm.weight"])
    assert norms == [*first, "norm.weight"]


def test_there_is_no_place_for_an_encoder(llama):
    with pytest.raises(ConfigError, match=r"block = 'parallel': has no place for attention to an encoder's output"):
        llama(block=Parallel(shared_norm=True), cross=Gqa(n_heads=4))
