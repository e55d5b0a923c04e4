"""The selective state space against its equations token by token, and on packed rows. Parity with the reference library
stands in tests/parity/test_mamba.py."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmfactory.core.context import CausalMask, Context
from llmfactory.core.errors import ConfigError
from llmfactory.model.initialize import initialize
from llmfactory.model.mixer.mamba import SelectiveStateSpace, StepBias
from llmfactory.model.mixer.spec import Mamba

SIZES = {"expand": 2, "state": 4, "conv": 3}


def plain(part: SelectiveStateSpace, x_TM: Tensor) -> Tensor:
    """The paper's equations for one row, one token at a time."""
    u_TD, size = part.up(x_TM), part.conv.weight.shape[1]
    h_DN = torch.zeros_like(part.log_rate)
    outputs = []
    for t in range(len(x_TM)):
        seen = part.conv.bias.clone()
        for back in range(min(size, t + 1)):
            seen = seen + part.conv.weight[:, size - 1 - back] * u_TD[t - back]
        u_D = F.silu(seen)
        rank, b_N, c_N = part.select(u_D).split([part.rank, part.n_state, part.n_state])
        delta_D = F.softplus(part.step(rank))
        h_DN = torch.exp(delta_D[:, None] * -part.log_rate.exp()) * h_DN + delta_D[:, None] * u_D[:, None] * b_N
        y_D = h_DN @ c_N + part.skip * u_D
        outputs.append(part.down(y_D * F.silu(part.gate(x_TM[t]))))
    return torch.stack(outputs)


def test_equals_its_equations(mixer) -> None:
    part = mixer(Mamba(**SIZES))
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    y = part(x, Context(torch.arange(9)[None], CausalMask(9)))
    for row in range(2):
        torch.testing.assert_close(y[row], plain(part, x[row]), rtol=1e-10, atol=1e-12)


def test_laws(mixer, law) -> None:
    law(mixer(Mamba(**SIZES)))


def test_a_convolution_of_one_token_is_none(mixer, law) -> None:
    law(mixer(Mamba(expand=1, state=2, conv=1, bias=True, conv_bias=False)))


def test_first_rates_and_steps(site) -> None:
    part = Mamba(expand=2, state=3, conv=2, step_min=0.01, step_max=0.5, step_floor=0.02).build(site())
    initialize(part, 0)
    torch.testing.assert_close(part.log_rate.exp(), torch.tensor([1.0, 2.0, 3.0]).expand(32, 3))
    steps = F.softplus(part.step.bias)
    assert 0.02 <= steps.min() + 1e-6 < 0.025
    assert 0.2 < steps.max() <= 0.5
    assert part.step.weight.abs().max() <= 1.0  # rank 1


def test_steps_are_even_on_a_logarithmic_scale() -> None:
    bias = torch.empty(4000)
    StepBias(0.001, 0.1, 1e-4).fill(bias, torch.Generator().manual_seed(0))
    middle = F.softplus(bias).median().item()
    assert math.isclose(middle, 0.01, rel_tol=0.15)


def test_its_rank_follows_the_width(site) -> None:
    assert Mamba(**SIZES).build(site(dim=40)).rank == 3
    assert Mamba(**SIZES, rank=7).build(site(dim=40)).rank == 7


def test_steps_have_an_order() -> None:
    with pytest.raises(ConfigError, match="below step_min"):
        Mamba(**SIZES, step_min=0.2)
