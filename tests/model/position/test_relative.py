from __future__ import annotations

import pytest
import torch

from llmfactory.core.context import CausalMask, Context, FullMask
from llmfactory.core.errors import ConfigError
from llmfactory.model.position.sinusoidal import waves
from llmfactory.model.position.spec import Relative


def vectors(part, context):
    return part.eval().prepare(context, torch.float64).relative


@pytest.mark.parametrize(("causal", "want"), [(True, [3, 2, 1, 0]), (False, [3, 2, 1, 0, -1, -2, -3])])
def test_a_vector_for_each_distance_from_the_largest_on(frame, causal, want):
    part = Relative().build(frame(causal=causal, dim=6))
    rows = torch.arange(4).expand(2, 4)
    got = vectors(part, Context(rows, CausalMask(4) if causal else FullMask(4)))
    torch.testing.assert_close(got, waves(torch.tensor(want), 6, 10000.0, False, torch.float64))


def test_a_step_has_the_distances_to_all_keys(frame):
    part = Relative(clamp=3).build(frame(dim=6))
    rows = torch.arange(6)[None]
    got = vectors(part, Context(rows[:, 5:], CausalMask(6, queries=1), key_positions=rows))
    torch.testing.assert_close(got, waves(torch.tensor([3, 3, 3, 2, 1, 0]), 6, 10000.0, False, torch.float64))


def test_dropout_in_training_only(frame):
    part, context = Relative(dropout=0.5).build(frame(dim=6)), Context(torch.arange(9)[None], CausalMask(9))
    assert (vectors(part, context) == 0).sum() <= 4  # sines of 0
    assert (part.train().prepare(context, torch.float64).relative == 0).sum() > 10


def test_problems():
    with pytest.raises(ConfigError) as caught:
        Relative(clamp=0, dropout=1.0)
    assert [problem.repair for problem in caught.value.problems] == ["clamp=1", "dropout=0.99"]
