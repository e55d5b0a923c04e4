from __future__ import annotations

import pytest
import torch

from llmfactory.core.context import CausalMask, Context
from llmfactory.core.errors import ConfigError
from llmfactory.core.sharding import Layout
from llmfactory.model.attention import reference
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.initialize import initialize
from llmfactory.model.norm.spec import RmsNorm


@pytest.fixture
def part(site):
    def make(**changes):
        built = Gqa(**{"n_heads": 6, **changes}).build(site(dim=48, n_heads=6, head_dim=8))
        initialize(built, 0)
        return built

    return make


def test_whole_part_from_its_matrices(part):
    built = part(n_kv_heads=2, bias=True).double()
    for number, parameter in enumerate(built.parameters()):
        parameter.data.normal_(generator=torch.Generator().manual_seed(number))
    x = torch.randn(2, 7, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    context = Context(torch.arange(7)[None], CausalMask(7))
    q, k, v = (
        (x @ linear.weight.T + linear.bias).view(2, 7, heads, 8).transpose(1, 2)
        for linear, heads in ((built.q, 6), (built.k, 2), (built.v, 2))
    )
    want = reference.attend(q, k, v, context.mask).transpose(1, 2).reshape(2, 7, 48) @ built.o.weight.T + built.o.bias
    torch.testing.assert_close(built(x, context), want, rtol=1e-11, atol=1e-11)


def test_declarations(part):
    declared = part(n_kv_heads=2, bias=True).declare()
    assert {name: entry.layout for name, entry in declared.items()} == {
        **{f"{name}.{kind}": Layout.column for name in "qkv" for kind in ("weight", "bias")},
        "o.weight": Layout.row,
        "o.bias": Layout.replicated,
    }
    assert {name for name, entry in declared.items() if entry.decay} == {f"{name}.weight" for name in "qkvo"}
    assert declared["o.weight"].start.std == 0.005
    assert declared["q.weight"].start.std == 0.02


def test_dropout_in_training_only(part):
    built = part(dropout=0.5)
    x, context = torch.randn(2, 7, 48), Context(torch.arange(7)[None], CausalMask(7))
    built.eval()
    torch.testing.assert_close(built(x, context), part()(x, context))
    built.train()
    torch.manual_seed(0)
    first = built(x, context)
    assert not torch.equal(first, built(x, context))


def test_half_of_the_heads_is_a_part_of_its_own(part):
    """Tensor parallelism: two cuts of q, k, v (by output) and o (by input) sum up to the whole, by the same forward."""
    whole = part(n_kv_heads=2).double()
    x, context = torch.randn(2, 7, 48, dtype=torch.float64), Context(torch.arange(7)[None], CausalMask(7))
    total = torch.zeros(2, 7, 48, dtype=torch.float64)
    for rank in range(2):
        cut = part(n_kv_heads=2).double()
        for name in "qkv":
            getattr(cut, name).weight = torch.nn.Parameter(getattr(whole, name).weight.chunk(2, 0)[rank])
        cut.o.weight = torch.nn.Parameter(whole.o.weight.chunk(2, 1)[rank])
        total += cut(x, context)
    torch.testing.assert_close(total, whole(x, context), rtol=1e-12, atol=1e-12)


def test_norms_and_options_of_the_scores_reach_them(part):
    """Each head of q and k is normalized by itself; scale, window and softcap act on the scores."""
    built = part(n_kv_heads=2, qk_norm=RmsNorm(eps=0.1), scale=0.8, window=3, softcap=2.0).double()
    for number, parameter in enumerate(built.parameters()):
        parameter.data.normal_(generator=torch.Generator().manual_seed(number))
    x = torch.randn(2, 7, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    bias = torch.randn(1, 6, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    mask = CausalMask(7)

    def heads(name):
        return (x @ getattr(built, name).weight.T).view(2, 7, -1, 8).transpose(1, 2)

    def normal(z, gain):
        return z / (z.square().mean(-1, keepdim=True) + 0.1).sqrt() * gain

    q, k = normal(heads("q"), built.q_norm.weight), normal(heads("k"), built.k_norm.weight)
    y = reference.attend(q, k, heads("v"), mask, bias, scale=0.8, window=3, softcap=2.0)
    want = y.transpose(1, 2).reshape(2, 7, 48) @ built.o.weight.T
    got = built(x, Context(torch.arange(7)[None], mask, bias=bias))
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("head_dim", [4, 20])
def test_heads_wider_or_narrower_than_the_model(part, head_dim):
    built = part(head_dim=head_dim, n_kv_heads=3)
    assert built.q.weight.shape == (6 * head_dim, 48)
    assert built.k.weight.shape == built.v.weight.shape == (3 * head_dim, 48)
    assert built.o.weight.shape == (48, 6 * head_dim)
    x = torch.randn(2, 7, 48)
    assert built(x, Context(torch.arange(7)[None], CausalMask(7))).shape == x.shape
    spec = Gqa(n_heads=6, head_dim=head_dim)
    assert spec.head_width(48) == head_dim
    assert spec.score_width(48) == 12 * head_dim
    assert list(spec.problems_at_width(49)) == []


@pytest.mark.parametrize(("bias", "qkv_bias", "with_bias"), [(False, True, "qkv"), (True, False, "o"), (True, None, "qkvo")])
def test_which_projections_have_a_bias(part, bias, qkv_bias, with_bias):
    built = part(bias=bias, qkv_bias=qkv_bias)
    assert {name for name in "qkvo" if getattr(built, name).bias is not None} == set(with_bias)


def test_problems_and_repairs():
    with pytest.raises(ConfigError) as caught:
        Gqa(n_heads=4, n_kv_heads=3, head_dim=0, window=0, scale=0.0, softcap=-1.0, dropout=1.0)
    repairs = [problem.repair for problem in caught.value.problems]
    assert repairs == ["head_dim=1", "scale=1.0", "dropout=0.99", "window=1", "softcap=50.0", "n_kv_heads=null"]
    (problem,) = Gqa(n_heads=32, n_kv_heads=8).problems_at_width(100)
    assert (problem.path, problem.repair) == ("n_heads", "n_heads=25 n_kv_heads=null")
    (problem,) = Gqa(n_heads=32, n_kv_heads=5 - 1).problems_at_width(120)
    assert problem.repair == "n_heads=30 n_kv_heads=null"
    (problem,) = Gqa(n_heads=16, n_kv_heads=4).problems_at_width(12)
    assert problem.repair == "n_heads=12"


def test_laptop_size_keeps_ratios():
    """T5 11B: 128 heads of 128 in a model of 1024; PaLM 540B: 48 of 256 in 18432."""
    assert Gqa(n_heads=128, head_dim=128).small(32 / 1024) == {"n_heads": 4, "head_dim": 128}
    assert Gqa(n_heads=48, n_kv_heads=1, head_dim=256, window=4096).small(64 / 18432) == {
        "n_heads": 48,
        "n_kv_heads": 1,
        "window": 16,
        "head_dim": 4,
    }
