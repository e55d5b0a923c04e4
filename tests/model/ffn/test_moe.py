from __future__ import annotations

import dataclasses

import pytest
import torch

from llmfactory.core.context import CausalMask, Context, FullMask, Record
from llmfactory.core.sharding import Layout
from llmfactory.model.declarations import declarations
from llmfactory.model.ffn.spec import Activation, Moe, Score

E, D = 6, 8


def spec(**changes):
    fields = {"hidden": 12, "n_experts": E, "k": 2, "activation": Activation.silu, "gated": True}
    return Moe(**{**fields, **changes})


def mixture(site, **changes):
    part = spec(**changes).build(site(dim=D))
    torch.manual_seed(0)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return part.double()


def context(x, **changes):
    return Context(torch.zeros(x.shape[:2]), FullMask(), **changes)


def gated(gate, up, down, token):
    inner = gate @ token
    return down @ (inner * inner.sigmoid() * (up @ token))


def by_loops(part, wanted, x):
    """A token and an expert at a time; the softmax is over the chosen logits alone where that is the same."""
    y = torch.zeros_like(x)
    for row in range(len(x)):
        for place in range(x.shape[1]):
            token = x[row, place]
            logits = part.router.weight @ token
            chosen = logits.argsort(descending=True)[: wanted.k]
            if wanted.score is Score.softmax:
                weights = logits[chosen].softmax(0) if wanted.normalize else logits.softmax(0)[chosen]
            else:
                weights = logits.sigmoid()[chosen]
                weights = weights / weights.sum() if wanted.normalize else weights
            for weight, expert in zip(weights, chosen.tolist(), strict=True):
                matrices = (part.experts.gate[expert], part.experts.up[expert], part.experts.down[expert])
                y[row, place] += wanted.scale * weight * gated(*matrices, token)
            if wanted.shared_hidden:
                shared = gated(part.shared.gate.weight, part.shared.up.weight, part.shared.down.weight, token)
                gate = (part.shared_gate.weight @ token).sigmoid() if wanted.shared_gate else 1.0
                y[row, place] += gate * shared
    return y


CASES = {
    "mixtral": {},
    "one": {"k": 1, "normalize": False},
    "all": {"k": E},
    "qwen": {"normalize": False, "shared_hidden": 20, "shared_gate": True},
    "deepseek": {"normalize": False, "scale": 2.5, "shared_hidden": 24},
    "deepseek_v3": {"score": Score.sigmoid, "scale": 2.5, "k": 3},
    "sigmoid": {"score": Score.sigmoid, "normalize": False},
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_against_a_loop(site, case):
    part, wanted = mixture(site, **CASES[case]), spec(**CASES[case])
    x = torch.randn(2, 5, D, dtype=torch.float64, requires_grad=True)
    coefficients = torch.randn(2, 5, D, dtype=torch.float64)
    results = []
    for function in (lambda: part(x, context(x)), lambda: by_loops(part, wanted, x)):
        part.zero_grad()
        x.grad = None
        y = function()
        (y * coefficients).sum().backward()
        results.append([y.detach(), x.grad, *(weight.grad for weight in part.parameters())])
    for got, want in zip(*results, strict=True):
        want = torch.zeros_like(got) if want is None else want
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_no_token_is_dropped_when_all_want_the_same(site):
    part = mixture(site, k=1, normalize=False)
    x = torch.randn(1, 1, D, dtype=torch.float64).expand(4, 50, D)
    y = part(x, context(x))
    assert y.abs().min() > 0
    torch.testing.assert_close(y, y[:1, :1].expand_as(y), rtol=1e-12, atol=1e-12)


def test_sigmoid_scores_are_balanced_by_their_shares(site):
    """DeepSeek-V3, equation 19: scores divided by their sum over the experts."""
    part = mixture(site, score=Score.sigmoid, k=2, balance=1.0)
    x, record = torch.randn(1, 9, D, dtype=torch.float64), Record()
    part(x, context(x, record=record))
    scores = (x[0] @ part.router.weight.T).sigmoid()
    shares = (scores / scores.sum(-1, keepdim=True)).mean(0)
    visits = torch.bincount(scores.topk(2).indices.flatten(), minlength=E).double() / 9
    assert float(record.sums["balance"].detach()) == pytest.approx(9 * E * float((shares * visits).sum().detach()), rel=1e-12)


def test_the_router_learns_from_the_balance(site):
    part = mixture(site, balance=1.0)
    x, record = torch.randn(2, 9, D, dtype=torch.float64), Record()
    part(x, context(x, record=record))
    record.sums["balance"].backward()
    assert part.router.weight.grad.abs().max() > 0
    assert part.experts.up.grad is None


def test_what_a_token_visits(site):
    part = mixture(site, k=2, shared_hidden=20, shared_gate=True)
    assert part.visited() == E * D + 2 * 3 * D * 12 + 3 * D * 20 + D


def test_declarations(site):
    declared = declarations(mixture(site, shared_hidden=20, shared_gate=True))
    layouts = {name: entry.layout for name, entry in declared.items()}
    assert layouts == {
        "router.weight": Layout.replicated,
        "shared_gate.weight": Layout.replicated,
        **{f"experts.{name}": Layout.expert for name in ("gate", "up", "down")},
        "shared.gate.weight": Layout.column,
        "shared.up.weight": Layout.column,
        "shared.down.weight": Layout.row,
    }


def test_terms_of_a_whole_model_and_of_its_dense_sibling(llama, build):
    assert build(llama()).terms == ()
    model = build(llama(ffn=spec(balance=0.1, z=0.1)))
    assert model.terms == ("balance", "router_z")
    record, tokens = Record(), torch.arange(20).view(2, 10)
    model(tokens, Context(torch.arange(10).expand(2, 10), CausalMask(10), record=record))
    assert record.sums.keys() == {"balance", "router_z"}


def test_laptop_size():
    big = spec(hidden=1408, n_experts=64, k=6, shared_hidden=2816)
    small = dataclasses.replace(big, **big.small(0.25))
    assert (small.hidden, small.n_experts, small.k, small.shared_hidden) == (352, 12, 6, 704)
    again = dataclasses.replace(small, **small.small(1.0))
    assert again == small
    few = spec(n_experts=3, k=3)
    assert dataclasses.replace(few, **few.small(0.5)).k == 3


@pytest.mark.parametrize(
    ("wrong", "field"),
    [({"k": 7}, "k"), ({"k": 0}, "k"), ({"shared_gate": True}, "shared_gate"), ({"scale": 0.0}, "scale"), ({"z": -1.0}, "z")],
)
def test_bad_values(wrong, field):
    with pytest.raises(ValueError, match=field):
        spec(**wrong)
