"""Losses of single tokens, by cases."""

from __future__ import annotations

import math

import pytest
import torch

from llmfactory.objective.surrogate import clipped_policy_loss, clipped_value_loss, k1, k3

RATIOS = [0.5, 0.79, 0.81, 1.0, 1.19, 1.29, 1.31, 3.0]


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_policy_loss_and_where_it_has_a_gradient(advantage: float) -> None:
    """Equation 7 of Schulman et al. 2017 with bounds of its own on either side."""
    logp = torch.tensor(RATIOS, dtype=torch.float64).log().add(-3.0).requires_grad_()
    losses, held = clipped_policy_loss(logp, torch.full_like(logp, -3.0), torch.full_like(logp, advantage), 0.2, 0.3)
    losses.sum().backward()
    for number, ratio in enumerate(RATIOS):
        bounded = min(max(ratio, 0.8), 1.3)
        assert losses[number].item() == pytest.approx(-min(advantage * ratio, advantage * bounded))
        free = ratio <= 1.3 if advantage > 0 else ratio >= 0.8
        assert bool(held[number]) is not free
        assert float(logp.grad[number]) == pytest.approx(-advantage * ratio if free else 0.0)


def test_values_move_so_far_only() -> None:
    values = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    olds = torch.tensor([0.9, 0.5, 0.5], dtype=torch.float64)
    targets = torch.tensor([2.0, 2.0, 0.0], dtype=torch.float64)
    found = clipped_value_loss(values, olds, targets, 0.2)
    assert found.tolist() == pytest.approx([0.5 * 1.0, 0.5 * 1.3**2, 0.5 * 1.0])
    assert clipped_value_loss(values, olds, targets, None).tolist() == [0.5, 0.5, 0.5]


def test_estimates_of_divergence_have_its_mean() -> None:
    """Over all outcomes, weighted by how likely they are, both give sum p log(p / q)."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)
    exact = sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    assert float(p @ k1(p.log(), q.log())) == pytest.approx(exact)
    assert float(p @ k3(p.log(), q.log())) == pytest.approx(exact)
    assert (k3(p.log(), q.log()) > 0).all()
    assert k3(p.log(), p.log()).tolist() == [0, 0, 0]
