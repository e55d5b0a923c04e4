from __future__ import annotations

import pytest
import torch

from llmfactory.core.errors import ConfigError
from llmfactory.optim.schedule.spec import OneCycle


def test_up_and_down() -> None:
    schedule = OneCycle(start=0.2, warmup_steps=25, floor=0.1).build(100)
    assert [schedule(step) for step in (0, 25, 100, 5000)] == pytest.approx([0.2, 1.0, 0.1, 0.1])
    assert schedule(12) < 0.6 < schedule(13)


def test_equals_pytorch() -> None:
    """Whose last step is the one before the horizon, and whose peak falls between two steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=101, pct_start=31 / 101, div_factor=25, final_div_factor=100, cycle_momentum=False
    )
    ours = OneCycle(warmup_steps=30).build(100)
    for step in range(100):
        assert ours(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        theirs.step()


def test_a_start_above_the_peak() -> None:
    with pytest.raises(ConfigError, match="start"):
        OneCycle(start=1.5)
