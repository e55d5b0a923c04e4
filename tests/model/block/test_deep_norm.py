from __future__ import annotations

import pytest
import torch
from torch import nn

from llmfactory.core.errors import ConfigError
from llmfactory.model.attention.spec import Gqa, TwoStream
from llmfactory.model.attention.spec import Relative as RelativeAttention
from llmfactory.model.block.spec import DeepNorm
from llmfactory.model.ffn.spec import Glu
from llmfactory.model.initialize import initialize
from llmfactory.model.position.spec import Relative as RelativePosition


@pytest.mark.parametrize(("spec", "alpha"), [(DeepNorm(), 10**0.25), (DeepNorm(power=0.5, beta_layers=2.0), 10**0.5)])
def test_wiring(spec, alpha, check_wiring):
    """Five layers: alpha = 10^power."""

    def equation(block, x, f, h, cross):
        x = block.attention_norm(alpha * x + f(x))
        return block.ffn_norm(alpha * x + h(x))

    check_wiring(spec, equation, crosses=(False,))


def test_each_sub_layer_is_dropped_in_training(check_dropout):
    check_dropout(DeepNorm(), branches=2)


def test_constants_are_those_of_the_papers():
    """Wang et al. 2022, figure 2, decoder-only: 100 layers. GLM-130B: 70 layers, (2 N)^(1/2) and its inverse."""
    paper, glm = DeepNorm(), DeepNorm(power=0.5, beta_layers=2.0)
    assert paper.alpha(100) == pytest.approx(3.760603, rel=1e-6)
    assert paper.branch_scale(100) == pytest.approx(0.188030, rel=1e-5)
    assert glm.alpha(70) == pytest.approx(140**0.5)
    assert glm.branch_scale(70) == pytest.approx(140**-0.5)


def test_what_a_sub_layer_grows_with_starts_smaller(family):
    """Values, output and feed-forward by beta; queries and keys as usual."""
    spec = family(block=DeepNorm(), n_layers=50, dim=48, depth_scaled_init=False, init_std=0.02)
    beta = (8 * 50) ** -0.25
    model = spec.build()
    initialize(model, 0)
    gate = ["ffn.gate"] if isinstance(spec.ffn, Glu) else []
    for name in ("attention.v", "attention.o", *gate, "ffn.up", "ffn.down", "attention.q", "attention.k"):
        weights = torch.cat([block.get_submodule(name).weight.detach().flatten() for block in model.blocks])
        want = 0.02 if name in ("attention.q", "attention.k") else 0.02 * beta
        assert float(weights.std()) == pytest.approx(want, rel=0.03), name
    assert float(model.embedding.weight.detach().std()) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("attention", [RelativeAttention(n_heads=4), TwoStream(n_heads=4)])
def test_so_do_the_values_of_other_attention_parts(attention, site):
    part = attention.build(site(branch_scale=0.5, dim=64, head_dim=16, position=RelativePosition()))
    starts = {name: declared.start.std for name, declared in part.declare().items() if name.endswith("weight")}
    assert starts["v.weight"] == 0.01
    assert {starts[f"{name}.weight"] for name in "qk"} == {0.02}


def test_nothing_follows_the_last_block(gpt, build):
    assert isinstance(build(gpt(block=DeepNorm())).norm, nn.Identity)


def test_there_is_no_place_for_an_encoder(llama):
    with pytest.raises(ConfigError, match=r"block = 'deep_norm': has no place for attention to an encoder's output"):
        llama(block=DeepNorm(), cross=Gqa(n_heads=4))


def test_bad_constants(llama):
    with pytest.raises(ConfigError, match="power"):
        DeepNorm(power=0.0)
    with pytest.raises(ConfigError, match="beta_layers"):
        DeepNorm(beta_layers=0.0)
