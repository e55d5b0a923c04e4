"""AdamW's step in Triton (kernel/adamw.py, kernel/tile/adamw.py) against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from twice import DEVICES, FORMATS, TOLERANCE, random

from llmfactory.core.kernel import Kernel
from llmfactory.kernel.adamw import adamw_step_, reference
from llmfactory.optim.adamw import KernelAdamW
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Adamw


def spec(kernel: Kernel) -> Adamw:
    return Adamw(lr=0.1, schedule=Constant(), weight_decay=0.2, betas=[0.8, 0.9], eps=1e-3, kernel=kernel)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(1,), (17, 65), (0, 3)])
def test_the_optimizer_takes_it(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    """And steps and remembers as PyTorch's does: three steps, then each goes on from the other's state."""
    weights = [random(*shape, dtype=dtype, device=device).requires_grad_() for _ in range(2)]
    optimizers = [
        spec(kernel).build([{"params": [weight]}]) for kernel, weight in zip((Kernel.triton, Kernel.torch), weights, strict=True)
    ]
    assert isinstance(optimizers[0], KernelAdamW)
    for step in range(5):
        if step == 3:
            states = [optimizer.state_dict() for optimizer in optimizers]
            for optimizer, state in zip(optimizers, reversed(states), strict=True):
                optimizer.load_state_dict(state)
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = random(*shape, dtype=dtype, device=device, seed=step)
            optimizer.step()
        torch.testing.assert_close(*weights, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("device", DEVICES)
def test_against_the_reference_and_left_out(device: str) -> None:
    ours, plain = ([random(5, 13, dtype=torch.float64, device=device, seed=n).abs() for n in range(4)] for _ in range(2))
    step = torch.full((), 6.0, device=device)
    options = {"lr": 0.1, "betas": (0.7, 0.9), "eps": 1e-3, "decay": 0.3}
    adamw_step_(*ours, step, **options, found_inf=torch.ones((), device=device))
    assert step == 6
    assert all(torch.equal(one, other) for one, other in zip(ours, plain, strict=True))
    adamw_step_(*ours, step, **options, found_inf=torch.zeros((), device=device))
    assert step == 7
    reference(*plain, torch.tensor(7.0, dtype=torch.float64), **options)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FORMATS)
def test_each_format(dtype: torch.dtype, device: str) -> None:
    """Against the reference in float64 of the same numbers; a gradient that is part of a wider tensor."""
    ours = [random(5, 13, dtype=dtype, device=device, seed=n).abs() + 0.1 for n in range(4)]
    plain = [x.double() for x in ours]
    ours[1] = torch.stack((ours[1], ours[1]), -1)[..., 0]
    options = {"lr": 0.1, "betas": (0.7, 0.9), "eps": 1e-3, "decay": 0.3}
    adamw_step_(*ours, torch.zeros((), device=device), **options)
    reference(*plain, torch.ones((), dtype=torch.float64), **options)
    for one, other in zip(ours, plain, strict=True):
        assert one.dtype is dtype
        torch.testing.assert_close(one.double(), other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("device", DEVICES)
def test_weights_are_changed_where_they_stand(device: str) -> None:
    weight, *rest = (torch.zeros(3, 4, device=device) for _ in range(4))
    with pytest.raises(ValueError, match="contiguous"):
        adamw_step_(weight.t(), *rest, torch.zeros((), device=device), lr=0.1, betas=(0.9, 0.9), eps=1e-8, decay=0.0)
