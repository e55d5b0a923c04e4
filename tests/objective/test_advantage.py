"""Advantages against the papers' equations, written as loops over single numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from llmfactory.objective.advantage import (
    adapted,
    all_equal,
    generalized_advantages,
    group_advantages,
    long_answer_penalty,
    token_rewards,
    whitened,
)
from llmfactory.objective.policy_spec import Baseline


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def answers(*spans: tuple[int, int], width: int = 7) -> Tensor:
    """[N, T], true at the tokens of an answer."""
    return torch.tensor([[first <= t < stop for t in range(width)] for first, stop in spans])


def test_groups() -> None:
    rewards = numbers(3, 5)
    for baseline in Baseline:
        found = group_advantages(rewards, baseline)
        for group, row in zip(rewards.tolist(), found.tolist(), strict=True):
            mean = sum(group) / 5
            std = math.sqrt(sum((one - mean) ** 2 for one in group) / 4)
            others = [(sum(group) - one) / 4 for one in group]
            wanted = {
                Baseline.mean_std: [(one - mean) / (std + 1e-4) for one in group],
                Baseline.mean: [one - mean for one in group],
                Baseline.leave_one_out: [one - rest for one, rest in zip(group, others, strict=True)],
            }[baseline]
            assert row == pytest.approx(wanted, rel=1e-12)


def test_equal_rewards_teach_nothing() -> None:
    """Not even what rounding leaves of their mean."""
    rewards = torch.full((2, 3), 0.1, dtype=torch.float64)
    rewards[1, 2] = 0.2
    assert all_equal(rewards).tolist() == [True, False]
    for baseline in Baseline:
        assert group_advantages(rewards, baseline)[0].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.9, 1.0), (0.7, 0.0)])
def test_generalized_advantages_are_discounted_sums_of_errors(gamma: float, lam: float) -> None:
    """Equation 16 of Schulman et al. 2016: every answer by itself, from its first token to its last."""
    spans = [(2, 6), (0, 7), (3, 4)]
    kept, rewards, values = answers(*spans), numbers(3, 7), numbers(3, 7, seed=1)  # also where there is no answer
    advantages, returns = generalized_advantages(rewards, values, kept, gamma, lam)
    for row, (first, stop) in enumerate(spans):
        r, v = rewards[row].tolist(), [*values[row].tolist()[:stop], 0.0]
        for t in range(7):
            if not first <= t < stop:
                assert advantages[row, t] == returns[row, t] == 0
                continue
            errors = [r[s] + gamma * v[s + 1] - v[s] for s in range(t, stop)]
            wanted = sum((gamma * lam) ** away * error for away, error in enumerate(errors))
            assert float(advantages[row, t]) == pytest.approx(wanted, rel=1e-12)
            assert float(returns[row, t]) == pytest.approx(wanted + v[t], rel=1e-12)


def test_without_a_discount_returns_are_the_rewards_that_are_to_come() -> None:
    kept, rewards = answers((1, 5), (0, 3)), numbers(2, 7)
    _, returns = generalized_advantages(rewards * kept, numbers(2, 7, seed=1) * kept, kept, 1.0, 1.0)
    wanted = np.flip(np.cumsum(np.flip((rewards * kept).numpy(), 1), 1), 1) * kept.numpy()
    assert torch.allclose(returns, torch.tensor(wanted))


def test_the_last_token_gets_the_score_and_each_pays_for_its_divergence() -> None:
    kept, divergence = answers((2, 5), (0, 1)), numbers(2, 7)
    found = token_rewards(torch.tensor([3.0, -1.0], dtype=torch.float64), divergence, kept, 0.5)
    wanted = -0.5 * divergence * kept
    wanted[0, 4] += 3.0
    wanted[1, 0] -= 1.0
    assert torch.equal(found, wanted)


def test_an_answer_without_tokens_has_no_reward() -> None:
    found = token_rewards(
        torch.tensor([3.0], dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64), answers((2, 2), width=4), 1
    )
    assert not found.any()


def test_white_numbers() -> None:
    kept, x = answers((2, 6), (0, 7)), numbers(2, 7) * 5 + 3
    white = whitened(x, kept)
    assert float(white[kept].mean()) == pytest.approx(0, abs=1e-12)
    assert float(white[kept].var(correction=0)) == pytest.approx(1, rel=1e-6)
    assert not white[~kept].any()
    assert float(whitened(x, kept, shift=False)[kept].mean()) == pytest.approx(float(x[kept].mean()))
    assert torch.equal(whitened(x, kept & False), x)


def test_long_answers_lose_up_to_one() -> None:
    """Equation 13 of DAPO: nothing up to 16 of 20 tokens, then a line down to -1."""
    assert long_answer_penalty(torch.tensor([1, 16, 17, 18, 20]), 20, 4).tolist() == [0, 0, -0.25, -0.5, -1]


def test_the_penalty_follows_its_target() -> None:
    """Section 2.2 of Ziegler et al. 2019: K = 0.1, errors cut off at 20 %."""
    assert adapted(0.2, 0.11, 0.1) == pytest.approx(0.2 * 1.01)
    assert adapted(0.2, 5.0, 0.1) == pytest.approx(0.2 * 1.02)
    assert adapted(0.2, 0.0, 0.1) == pytest.approx(0.2 * 0.98)
    assert adapted(0.2, 0.1, 0.1) == 0.2
