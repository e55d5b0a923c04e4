"""Kinds of layers within one stack."""

from __future__ import annotations

import pytest
import torch

from llmfactory.core.context import CausalMask, Context
from llmfactory.core.errors import ConfigError
from llmfactory.model.attention.spec import Gqa, Relative
from llmfactory.model.ffn.spec import Activation, Glu, Mlp
from llmfactory.model.position.spec import Alibi, Learned, Rope, T5Bias
from llmfactory.model.position.spec import Relative as RelativePosition
from llmfactory.model.spec import LayerSpec


def test_a_pattern_repeats_over_the_depth(llama):
    other = LayerSpec(ffn=Mlp(hidden=5, activation=Activation.relu))
    model = llama(n_layers=5, others={"thin": other}, pattern=["base", "thin"]).build()
    assert [type(block.ffn).__name__ for block in model.blocks] == [
        "GatedLinearUnit",
        "MultiLayerPerceptron",
        "GatedLinearUnit",
        "MultiLayerPerceptron",
        "GatedLinearUnit",
    ]
    tokens = torch.ones(1, 3, dtype=torch.long)
    assert model(tokens, Context(torch.arange(3)[None], CausalMask(3))).shape == (1, 3, 24)


def test_what_a_pattern_may_say(llama):
    with pytest.raises(ConfigError, match="there is no kind of layer 'moe'"):
        llama(pattern=["base", "moe"])
    with pytest.raises(ConfigError, match="no layer is of this kind"):
        llama(others={"moe": LayerSpec()})
    with pytest.raises(ConfigError, match="names more layers"):
        llama(n_layers=1, pattern=["base", "base"])
    with pytest.raises(ConfigError, match=r"others.wide.attention.n_heads"):
        llama(others={"wide": LayerSpec(attention=Gqa(n_heads=7))}, pattern=["wide"])


@pytest.mark.parametrize(
    ("position", "changes", "fits"),
    [
        (Rope(), {"n_heads": 3, "head_dim": 4}, True),
        (Rope(), {"n_heads": 6, "head_dim": 8}, False),
        (Alibi(), {"n_heads": 3, "head_dim": 4}, False),
        (T5Bias(), {"n_heads": 3, "head_dim": 4}, False),
        (Alibi(), {"n_heads": 6, "head_dim": 8}, True),
        (Learned(), {"n_heads": 3, "head_dim": 8}, True),
    ],
)
def test_positions_serve_the_heads_of_every_kind_of_layer(llama, position, changes, fits):
    kinds = {"others": {"other": LayerSpec(attention=Gqa(**changes))}, "pattern": ["base", "other"]}
    if fits:
        model = llama(n_layers=2, position=position, **kinds).build()
        tokens = torch.ones(1, 3, dtype=torch.long)
        assert model(tokens, Context(torch.arange(3)[None], CausalMask(3))).shape == (1, 3, 24)
        return
    with pytest.raises(ConfigError) as caught:
        llama(n_layers=2, position=position, **kinds)
    (problem,) = caught.value.problems
    assert (problem.path, problem.repair) == ("others.other.attention.n_heads", "others.other.attention=null")


def test_flops_count_the_layers_that_there_are(llama):
    thin = LayerSpec(ffn=Glu(hidden=32, activation=Activation.silu))
    base, mixed = llama(n_layers=2), llama(n_layers=2, others={"thin": thin}, pattern=["base", "thin"])
    with torch.device("meta"):
        difference = base.build().train_flops_per_token(10) - mixed.build().train_flops_per_token(10)
    assert difference == 6 * 3 * 24 * 32


def test_cross_attention_needs_an_encoder(llama):
    with pytest.raises(ConfigError, match="no encoder"):
        llama(cross=Gqa(n_heads=4))


def test_distances_are_given_and_scored(llama):
    """Without the other half, attention would miss what it scores, or the model would have no positions at all."""
    with pytest.raises(ConfigError, match=r"model/position=rope does not give"):
        llama(attention=Relative(n_heads=4))
    with pytest.raises(ConfigError, match=r"there would be no positions") as caught:
        llama(position=RelativePosition())
    assert caught.value.problems[0].repair == "model/attention@attention=relative"
    llama(attention=Relative(n_heads=4), position=RelativePosition())
