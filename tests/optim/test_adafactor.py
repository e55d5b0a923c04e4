"""Adafactor against a plain form of the paper's equations, and against the implementation that T5's users have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.optimization import Adafactor as Theirs

from llmfactory.core.errors import ConfigError
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Adafactor


def reference(w: Tensor, gradients: list[Tensor], spec: Adafactor, decay: float) -> Tensor:
    rows, columns, square, mean = torch.zeros_like(w).mean(-1), None, torch.zeros_like(w), torch.zeros_like(w)
    columns = torch.zeros_like(w).mean(-2) if w.dim() > 1 else None
    for step, g in enumerate(gradients, start=1):
        keep, s = 1 - step**-spec.decay_power, g * g + spec.eps
        if columns is None:
            square = keep * square + (1 - keep) * s
            v = square
        else:
            rows, columns = keep * rows + (1 - keep) * s.mean(-1), keep * columns + (1 - keep) * s.mean(-2)
            v = rows[..., :, None] * columns[..., None, :] / rows.mean(-1)[..., None, None]
        u = g / v.sqrt()
        u = u / max(1.0, float(u.square().mean().sqrt()) / spec.update_clip)
        u = u * spec.lr * (max(spec.least_scale, float(w.square().mean().sqrt())) if spec.scale_by_weights else 1.0)
        if spec.momentum is not None:
            mean = spec.momentum * mean + (1 - spec.momentum) * u
            u = mean
        w = w * (1 - spec.lr * decay) - u
    return w


def some(*shape: int, seed: int = 0, steps: int = 4) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    scales = (1.0, 1e-3, 50.0, 1e-8)[:steps]
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    return start, [torch.randn(shape, generator=generator, dtype=torch.float64) * scale for scale in scales]


def run(spec: Adafactor, start: Tensor, gradients: list[Tensor], decay: float) -> Tensor:
    weight = start.clone().requires_grad_()
    optimizer = spec.build([{"params": [weight], "weight_decay": decay}])
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (5,), (1, 6)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"momentum": 0.9},
        {"scale_by_weights": False},
        {"update_clip": 0.1, "decay_power": 0.5, "least_scale": 2.0, "eps": 1e-3},
    ],
    ids=str,
)
def test_equals_the_paper(shape: tuple[int, ...], changes: dict[str, float]) -> None:
    spec = Adafactor(lr=0.05, schedule=Constant(), **changes)
    start, gradients = some(*shape)
    torch.testing.assert_close(run(spec, start, gradients, 0.1), reference(start, gradients, spec, 0.1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 4), (5,)])
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_equals_transformers(shape: tuple[int, ...], momentum: float | None) -> None:
    start, gradients = some(*shape, seed=1)
    weight = start.clone().requires_grad_()
    theirs = Theirs([weight], lr=0.05, beta1=momentum, scale_parameter=True, relative_step=False, warmup_init=False)
    for gradient in gradients:
        weight.grad = gradient.clone()
        theirs.step()
    ours = run(Adafactor(lr=0.05, schedule=Constant(), momentum=momentum), start, gradients, 0.0)
    torch.testing.assert_close(ours, weight.detach(), rtol=1e-6, atol=1e-9)


def test_the_state_of_a_matrix_is_a_row_and_a_column() -> None:
    weight = torch.ones(30, 50, requires_grad=True)
    optimizer = Adafactor(lr=0.1, schedule=Constant()).build([{"params": [weight], "weight_decay": 0.0}])
    weight.grad = torch.ones(30, 50)
    optimizer.step()
    assert sum(value.numel() for value in optimizer.state[weight].values()) == 30 + 50 + 1


def test_a_bound_on_nothing() -> None:
    with pytest.raises(ConfigError, match="least_scale"):
        Adafactor(lr=0.1, schedule=Constant(), scale_by_weights=False, least_scale=0.1)
