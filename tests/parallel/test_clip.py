"""Clipping in one process, against torch's own."""

from __future__ import annotations

import pytest
import torch

from llmfactory.parallel.clip import bound_, clip_factor, global_norm, scale_


@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_equals_torch(max_norm: float) -> None:
    gradients = [torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    parameters = [torch.zeros(4, 3, requires_grad=True) for _ in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    expected = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    norm = global_norm(gradients)
    torch.testing.assert_close(norm, expected)
    scale_(gradients, clip_factor(norm, max_norm))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_no_clipping() -> None:
    assert clip_factor(torch.tensor(1e9), None) == 1.0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_broken_gradient_shows_in_the_norm(bad: float) -> None:
    assert not global_norm([torch.ones(3), torch.tensor([1.0, bad])]).isfinite()


def test_numbers_beyond_a_bound_are_set_to_it() -> None:
    gradients = [torch.tensor([-3.0, -0.5, 0.0]), torch.tensor([[0.5, 2.0]])]
    bound_(gradients, 1.0)
    assert torch.equal(gradients[0], torch.tensor([-1.0, -0.5, 0.0]))
    assert torch.equal(gradients[1], torch.tensor([[0.5, 1.0]]))
    bound_([], 1.0)
