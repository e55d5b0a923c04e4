from __future__ import annotations

import math

import pytest
import torch

from llmfactory.core.context import Context, FullMask
from llmfactory.model.ffn.spec import Activation, Switch

E, D = 4, 8


def layer(site, **changes):
    fields = {"hidden": 12, "n_experts": E, "activation": Activation.relu, "gated": False}
    part = Switch(**{**fields, **changes}).build(site(dim=D))
    torch.manual_seed(0)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return part.double()


def context(x, segments=None):
    return Context(torch.zeros(x.shape[:2]), FullMask(), segments=segments)


def by_loops(part, x, limit, segments):
    """Fedus et al. 2021, equations 1-3, a token at a time; `limit` of a row's real tokens."""
    y = torch.zeros_like(x)
    for row in range(len(x)):
        room = [limit(int((segments[row] > 0).sum()))] * E
        for token in range(x.shape[1]):
            shares = (part.router.weight @ x[row, token]).softmax(0)
            expert = int(shares.argmax())
            if segments[row, token] == 0:
                continue
            room[expert] -= 1
            if room[expert] >= 0:
                hidden = (part.experts.up[expert] @ x[row, token]).clamp_min(0)
                y[row, token] = shares[expert] * (part.experts.down[expert] @ hidden)
    return y


LIMITS = {
    "none": ({}, lambda tokens: 10**9),
    "factor": ({"capacity_factor": 1.1}, lambda tokens: math.ceil(1.1 * tokens / E)),
    "number": ({"capacity": 2}, lambda tokens: 2),
    "both": ({"capacity": 3, "capacity_factor": 0.9}, lambda tokens: min(3, math.ceil(0.9 * tokens / E))),
}


@pytest.mark.parametrize("limits", LIMITS)
def test_values_and_gradients_against_a_loop(site, limits):
    changes, limit = LIMITS[limits]
    part = layer(site, **changes)
    x = torch.randn(3, 13, D, dtype=torch.float64, requires_grad=True)
    segments = torch.ones(3, 13, dtype=torch.int64)
    segments[1, :5] = 0  # padding on the left
    segments[2, 9:] = 0
    real = (segments > 0)[..., None]
    coefficients = torch.randn(3, 13, D, dtype=torch.float64) * real
    results = []
    for function in (lambda: part(x, context(x, segments)), lambda: by_loops(part, x, limit, segments)):
        part.zero_grad()
        x.grad = None
        y = function()
        (y * coefficients).sum().backward()
        results.append([y.detach() * real, x.grad, *(weight.grad for weight in part.parameters())])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    dropped = int((results[0][0] == 0).all(-1).sum()) - int((segments == 0).sum())
    assert (dropped == 0) == (limits == "none")


def test_a_row_depends_on_no_other(site):
    part = layer(site, capacity_factor=1.0)
    x = torch.randn(3, 10, D, dtype=torch.float64)
    whole = part(x, context(x))
    for row in range(3):
        torch.testing.assert_close(part(x[row : row + 1], context(x[:1])), whole[row : row + 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("limits", ["factor", "number"])
@pytest.mark.parametrize("columns", [[[0, 1, 10, 11], [2, 3, 8, 9], [4, 5, 6, 7]], [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]])
def test_pieces_of_rows_share_a_capacity(site, in_pieces, limits, columns):
    """Who comes first is counted along the whole row, however its columns are dealt out."""
    part = layer(site, **LIMITS[limits][0])
    x = torch.randn(3, 12, D, dtype=torch.float64)
    segments = torch.ones(3, 12, dtype=torch.int64)
    segments[1, 7:] = 0
    for given in (segments, None):
        whole = part(x, context(x, given))
        assert (whole == 0).all(-1).any(), "somebody must find no room"

        def piece(pieces, given=given):
            own = None if given is None else pieces.own(given)
            return part(pieces.own(x), context(pieces.own(x), own).with_(pieces=pieces)).detach()

        for own, got in zip(columns, in_pieces(columns, piece), strict=True):
            torch.testing.assert_close(got, whole[:, own].detach(), rtol=1e-12, atol=1e-12)


def test_terms_and_visits(site):
    part = layer(site, balance=0.01)
    assert part.router.own_terms == ("balance",)
    assert part.visited() == E * D + 2 * D * 12


@pytest.mark.parametrize(
    "wrong", [{"capacity": 0}, {"capacity_factor": 0.0}, {"balance": -1.0}, {"jitter": 1.0}, {"n_experts": 0}]
)
def test_bad_values(site, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        layer(site, **wrong)
