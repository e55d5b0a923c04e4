from __future__ import annotations

import pytest
import torch

from llmfactory.core.context import FullMask
from llmfactory.core.errors import ConfigError
from llmfactory.model.attention import reference
from llmfactory.model.connector.spec import QFormer
from llmfactory.model.declarations import declarations
from llmfactory.model.initialize import initialize
from llmfactory.model.norm.spec import LayerNorm

SIZES = {"n_queries": 3, "dim": 8, "n_layers": 3, "n_heads": 2, "hidden": 12, "norm": LayerNorm()}


def made(**changes):
    part = QFormer(**{**SIZES, **changes}).build(6, 10, 0.5).double()
    initialize(part, 0)
    for parameter in part.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return part


def attended(part, x, memory):
    q, k, v = (
        linear(y).view(*y.shape[:2], -1, 4).transpose(1, 2) for linear, y in ((part.q, x), (part.k, memory), (part.v, memory))
    )
    return part.o(reference.attend(q, k, v, FullMask()).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("every", [1, 2, 3])
def test_queries_read_the_features_in_every_so_many_th_block(every):
    part, features = made(cross_every=every), torch.randn(2, 5, 6, dtype=torch.float64)
    x = part.norm(part.queries).expand(2, -1, -1)
    for number, block in enumerate(part.blocks):
        x = block.attention_norm(x + attended(block.attention, x, x))
        assert (block.cross is not None) == (number % every == 0)
        if block.cross is not None:
            x = block.cross_norm(x + attended(block.cross, x, features))
        x = block.ffn_norm(x + block.ffn(x, None))
    want = part.out(x)
    assert want.shape == (2, 3, 10)
    torch.testing.assert_close(part(features), want, rtol=1e-10, atol=1e-10)


CHANGES = {"n_queries": 4, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden": 20, "norm": LayerNorm(eps=0.1), "cross_every": 3}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_part(name):
    features = torch.ones(1, 5, 6, dtype=torch.float64)
    assert made()(features).sum() == made()(features).sum()
    assert made(**{name: CHANGES[name]})(features).sum() != made()(features).sum()


def test_declarations_and_counts():
    part = made()
    assert set(declarations(part)) == {name for name, _ in part.named_parameters()}
    assert part.declare()["queries"].start.std == 0.5
    assert QFormer(**SIZES).n_vectors(257) == 3
    with pytest.raises(ConfigError) as error:
        QFormer(**{**SIZES, "n_heads": 3})
    assert error.value.problems[0].repair == "n_heads=1"
    with pytest.raises(ConfigError, match="at least 1"):
        QFormer(**{**SIZES, "cross_every": 0})


def test_small():
    big = QFormer(n_queries=32, dim=768, n_layers=12, n_heads=12, hidden=3072, norm=LayerNorm(), cross_every=2)
    small = big.small(1 / 128)
    assert small == {"n_queries": 4, "dim": 8, "n_layers": 2, "n_heads": 4, "hidden": 32}
    import dataclasses

    assert dataclasses.replace(big, **small).small(1.0) == small
