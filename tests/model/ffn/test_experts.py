from __future__ import annotations

import pytest
import torch

from llmfactory.core.sharding import Layout
from llmfactory.model.ffn.experts import Experts
from llmfactory.model.ffn.spec import Activation, Moe


def experts(site, k, **changes):
    fields = {"hidden": 12, "n_experts": 5, "k": k, "activation": Activation.silu, "gated": True}
    part = Experts(Moe(**{**fields, **changes}), site(dim=8), k)
    torch.manual_seed(0)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter)
    return part.double()


def by_loops(part, x, choices):
    """Each visit of each token by itself."""
    rows = []
    for token, chosen in zip(x, choices.tolist(), strict=True):
        for expert in chosen:
            hidden = part.up[expert] @ token
            if part.gate is None:
                hidden = hidden.clamp_min(0)
            else:
                gate = part.gate[expert] @ token
                hidden = gate * gate.sigmoid() * hidden
            rows.append(part.down[expert] @ hidden)
    return torch.stack(rows)


@pytest.mark.parametrize("changes", [{}, {"gated": False, "activation": Activation.relu}], ids=["gated", "perceptron"])
@pytest.mark.parametrize("k", [1, 3])
def test_values_and_gradients_against_a_loop(site, k, changes):
    part = experts(site, k, **changes)
    x = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    choices = torch.rand(11, 4).argsort(1)[:, :k]  # expert 4 has no visits
    coefficients = torch.randn(11 * k, 8, dtype=torch.float64)
    results = []
    for function in (lambda: part(x, choices), lambda: by_loops(part, x, choices)):
        part.zero_grad()
        x.grad = None
        y = function()
        (y * coefficients).sum().backward()
        results.append([y.detach(), x.grad, *(weight.grad for weight in part.parameters())])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    assert not part.down.grad[4].any()


def test_declarations_and_what_a_token_visits(site):
    part = experts(site, k=2)
    declared = part.declare()
    assert {name: entry.layout for name, entry in declared.items()} == dict.fromkeys(("gate", "up", "down"), Layout.expert)
    assert [declared[name].start.std for name in ("gate", "up", "down")] == [0.02, 0.02, 0.005]
    assert all(entry.decay for entry in declared.values())
    assert part.visited() == 2 * 3 * 8 * 12
    assert experts(site, k=1, gated=False).declare().keys() == {"up", "down"}
