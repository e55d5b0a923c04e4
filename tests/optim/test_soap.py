"""SOAP against a loop over the paper's algorithm and against the library `pytorch_optimizer`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from llmfactory.core.errors import ConfigError
from llmfactory.optim import soap
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.soap import eigenbasis, iterated
from llmfactory.optim.spec import Adamw, Soap


def gradients(*shape: int, count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(seed)
    fixed = torch.randn(shape, generator=random, dtype=dtype)
    for _ in range(count):
        yield fixed + torch.randn(shape, generator=random, dtype=dtype)


def ours(spec: Soap, start: Tensor, given: Iterator[Tensor], decay: float = 0.0) -> Tensor:
    weight = start.clone().requires_grad_()
    optimizer = spec.build([{"params": [weight], "weight_decay": decay, "matrix": True}])
    for gradient in given:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


def loop(spec: Soap, weight: Tensor, given: Iterator[Tensor], decay: float) -> Tensor:
    """The paper's algorithm 3 with explicit eigenvectors at the first step and algorithm 4 after it; one matrix."""
    n, m = weight.shape
    (first, second), lr = spec.betas, spec.lr
    left, right = torch.zeros(n, n).to(weight), torch.zeros(m, m).to(weight)
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    q_left, q_right = torch.eye(n).to(weight), torch.eye(m).to(weight)
    for t, g in enumerate(given):
        if t > 0:
            mean = first * mean + (1 - first) * g
            square = second * square + (1 - second) * (q_left.T @ g @ q_right) ** 2
            turned = q_left.T @ (mean / (1 - first**t)) @ q_right
            root = (square / (1 - second**t)).sqrt() + spec.eps / (1 - second**t) ** 0.5
            weight = weight * (1 - lr * decay) - lr * q_left @ (turned / root) @ q_right.T
        left = spec.basis_beta * left + (1 - spec.basis_beta) * g @ g.T
        right = spec.basis_beta * right + (1 - spec.basis_beta) * g.T @ g
        if t == 0:
            q_left, q_right = (torch.linalg.eigh(one)[1].flip(1) for one in (left, right))
        elif t % spec.refresh_every == 0:
            order = (q_left * (left @ q_left)).sum(0).argsort(descending=True)
            q_left, square = torch.linalg.qr((left @ q_left)[:, order])[0], square[order]
            order = (q_right * (right @ q_right)).sum(0).argsort(descending=True)
            q_right, square = torch.linalg.qr((right @ q_right)[:, order])[0], square[:, order]
    return weight


def test_equals_the_papers_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soap, "SHIFT", 0.0)
    spec = Soap(lr=0.1, schedule=Constant(), betas=[0.8, 0.9], basis_beta=0.7, refresh_every=2, eps=1e-3)
    start = torch.randn(4, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    found = ours(spec, start, gradients(4, 4, count=8), 0.3)
    torch.testing.assert_close(found, loop(spec, start, gradients(4, 4, count=8), 0.3), rtol=1e-9, atol=1e-9)
    assert (found - start).abs().max() > 0.1


def test_equals_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    library = importlib.import_module("pytorch_optimizer")
    monkeypatch.setattr(soap, "SHIFT", 0.0)
    spec = Soap(lr=0.05, schedule=Constant(), betas=[0.9, 0.8], basis_beta=0.7, refresh_every=3, largest_side=5)
    for shape in ((5, 5), (5, 6), (6, 5)):
        start = torch.randn(*shape, generator=torch.Generator().manual_seed(3))
        theirs = start.clone().requires_grad_()
        optimizer = library.SOAP(
            [theirs],
            lr=0.05,
            betas=(0.9, 0.8),
            shampoo_beta=0.7,
            weight_decay=0.0,
            precondition_frequency=3,
            max_precondition_dim=5,
        )
        for gradient in gradients(*shape, count=9, dtype=torch.float32):
            theirs.grad = gradient.clone()
            optimizer.step()
        found = ours(spec, start, gradients(*shape, count=9, dtype=torch.float32))
        assert (found - theirs).norm() < 1e-4 * (theirs - start).norm(), shape


def test_in_a_basis_of_the_axes_it_is_adamw() -> None:
    """Sides longer than the longest have none; the first gradient is not stepped by."""
    start, given = torch.randn(3, 5, dtype=torch.float64), list(gradients(3, 5, count=6))
    spec = Soap(lr=0.1, schedule=Constant(), betas=[0.8, 0.9], eps=1e-12, largest_side=2)
    other = start.clone().requires_grad_()
    adamw = Adamw(lr=0.1, schedule=Constant(), betas=[0.8, 0.9], eps=1e-12).build([{"params": [other], "weight_decay": 0.1}])
    for gradient in given[1:]:
        other.grad = gradient.clone()
        adamw.step()
    torch.testing.assert_close(ours(spec, start, iter(given), 0.1), other.detach(), rtol=1e-9, atol=1e-9)


def test_matrices_of_a_stack_go_their_own_ways() -> None:
    spec = Soap(lr=0.1, schedule=Constant(), refresh_every=2)
    start = torch.randn(3, 4, 6, dtype=torch.float64)
    together = ours(spec, start, gradients(3, 4, 6, count=6))
    for number in range(3):
        alone = ours(spec, start[number], (one[number] for one in gradients(3, 4, 6, count=6)))
        torch.testing.assert_close(together[number], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (5, 5)])
def test_turned_gradients_make_turned_steps_whatever_rounding_does(shape: tuple[int, int]) -> None:
    """Noise of the size of rounding, in gradients of low rank, moves weights by no more."""
    spec = Soap(lr=0.1, schedule=Constant(), refresh_every=2)
    start, given = torch.zeros(shape, dtype=torch.float64), list(gradients(*shape, count=7))
    given[0] = given[0][:, :1] @ given[0][:1]  # of rank one
    noise = [1e-15 * one for one in gradients(*shape, count=7, seed=5)]
    noisy = (one + other for one, other in zip(given, noise, strict=True))
    found, same = ours(spec, start, iter(given)), ours(spec, start, noisy)
    assert (found - same).norm() < 1e-10 * found.norm()


def test_bases() -> None:
    x = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    products = x @ x.mT
    basis = eigenbasis(products)
    eye = torch.eye(6, dtype=torch.float64).expand(2, 6, 6)
    torch.testing.assert_close(basis.mT @ basis, eye)
    diagonal = basis.mT @ products @ basis
    torch.testing.assert_close(diagonal, torch.diag_embed(diagonal.diagonal(dim1=1, dim2=2)), rtol=0, atol=1e-12)
    assert (diagonal.diagonal(dim1=1, dim2=2).diff() < 1e-9).all()
    same, order = iterated(products, basis)
    sorted_columns = basis.gather(-1, order.unsqueeze(-2).expand_as(basis))
    torch.testing.assert_close((same.mT @ sorted_columns).abs(), eye, rtol=0, atol=1e-5)
    assert (order.sort(-1)[0] == torch.arange(6)).all()
    torch.testing.assert_close(eigenbasis(torch.zeros(4, 4)).abs(), torch.eye(4).flip(1))


def test_the_rest_learns_by_adamw() -> None:
    gain, same = torch.ones(4, requires_grad=True), torch.ones(4, requires_grad=True)
    spec = Soap(lr=0.1, schedule=Constant(), betas=[0.8, 0.9], eps=1e-3)
    optimizer = spec.build([{"params": [gain], "weight_decay": 0.3, "matrix": False}])
    adamw = Adamw(lr=0.1, schedule=Constant(), betas=[0.8, 0.9], eps=1e-3).build([{"params": [same], "weight_decay": 0.3}])
    for step in range(3):
        gain.grad = same.grad = torch.arange(4.0) - step
        optimizer.step()
        adamw.step()
    torch.testing.assert_close(gain, same, rtol=1e-6, atol=1e-6)


def test_never_refreshed() -> None:
    with pytest.raises(ConfigError, match="refresh_every"):
        Soap(lr=0.1, schedule=Constant(), refresh_every=0)
