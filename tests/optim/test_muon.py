"""Muon against its definition, and against PyTorch's, which iterates in bfloat16."""

from __future__ import annotations

import pytest
import torch

from llmfactory.core.errors import ConfigError
from llmfactory.optim.muon import orthogonal, scale_of
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Adamw, Muon, Scale


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (4, 4), (3, 5, 9), (1, 6)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    found = orthogonal(x, 5)
    values = torch.linalg.svdvals(found)
    assert (values > 0.6).all()
    assert (values < 1.3).all()
    # The polynomial acts on each singular value by itself.
    expected = s / x.norm(dim=(-2, -1), keepdim=True)[..., 0]
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    torch.testing.assert_close(found, u @ torch.diag_embed(expected) @ vt, rtol=1e-9, atol=1e-9)


def test_nothing_stays_nothing() -> None:
    assert orthogonal(torch.zeros(3, 4), 5).abs().max() == 0


@pytest.mark.parametrize("scale", Scale)
@pytest.mark.parametrize("nesterov", [True, False])
def test_equals_pytorch_but_for_its_bfloat16(scale: Scale, nesterov: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(8, 6, generator=generator)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    spec = Muon(lr=0.1, schedule=Constant(), weight_decay=0.2, momentum=0.9, nesterov=nesterov, scale=scale)
    optimizer = spec.build([{"params": [ours], "weight_decay": 0.2, "matrix": True}])
    name = {"spectral": "original", "like_adamw": "match_rms_adamw"}[scale.name]
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.2, momentum=0.9, nesterov=nesterov, adjust_lr_fn=name)
    for _ in range(3):
        gradient = torch.randn(8, 6, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved


def test_the_rest_learns_by_adamw() -> None:
    gain, same = torch.ones(4, requires_grad=True), torch.ones(4, requires_grad=True)
    spec = Muon(lr=0.1, schedule=Constant(), rest_factor=0.5, betas=[0.8, 0.9], eps=1e-3)
    optimizer = spec.build([{"params": [gain], "weight_decay": 0.3, "matrix": False}])
    adamw = Adamw(lr=0.05, schedule=Constant(), betas=[0.8, 0.9], eps=1e-3).build([{"params": [same], "weight_decay": 0.3}])
    for step in range(3):
        gain.grad = same.grad = torch.arange(4.0) - step
        optimizer.step()
        adamw.step()
    torch.testing.assert_close(gain, same, rtol=1e-6, atol=1e-6)


def test_scales() -> None:
    assert scale_of(torch.zeros(8, 2), Scale.spectral) == 2.0
    assert scale_of(torch.zeros(2, 8), Scale.spectral) == 1.0
    assert scale_of(torch.zeros(3, 25, 4), Scale.like_adamw) == pytest.approx(1.0)


def test_no_iterations() -> None:
    with pytest.raises(ConfigError, match="iterations"):
        Muon(lr=0.1, schedule=Constant(), iterations=0)
