"""LAMB against the algorithm as printed (You et al. 2020, algorithm 2)."""

from __future__ import annotations

import torch

from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Lamb


def reference(start: torch.Tensor, gradients: list[torch.Tensor], decay: float, adapted: bool) -> torch.Tensor:
    w, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step, g in enumerate(gradients, start=1):
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        r = (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-3) + decay * w
        ratio = w.norm() / r.norm() if adapted and w.norm() > 0 else 1.0
        w = w - 0.1 * ratio * r
    return w


def test_equals_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    spec = Lamb(lr=0.1, schedule=Constant(), betas=[0.8, 0.9], eps=1e-3)
    cases = {"matrix": ((3, 4), 0.2), "stack": ((2, 3, 2), 0.2), "gain": ((4,), 0.0), "zeros": ((2, 2), 0.0)}
    starts = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, (shape, _) in cases.items()}
    starts["zeros"].zero_()
    weights = {name: start.clone().requires_grad_() for name, start in starts.items()}
    gradients = {name: [torch.randn_like(start) * scale for scale in (1, 30, 0.1)] for name, start in starts.items()}
    optimizer = spec.build([{"params": [weights[name]], "weight_decay": decay} for name, (_, decay) in cases.items()])
    for step in range(3):
        for name, weight in weights.items():
            weight.grad = gradients[name][step].clone()
        optimizer.step()
    for name, (shape, decay) in cases.items():
        expected = reference(starts[name], gradients[name], decay, len(shape) > 1)
        torch.testing.assert_close(weights[name].detach(), expected, rtol=1e-12, atol=1e-12, msg=name)
