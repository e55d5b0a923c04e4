"""An optimizer of some of its parameters for a step."""

from __future__ import annotations

import pytest
import torch

from llmfactory.parallel.stepping import only


def test_only_these_step_and_all_come_back() -> None:
    one, other = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([one, other], lr=1.0)
    groups = optimizer.param_groups
    one.grad = other.grad = torch.ones(2)
    with only(optimizer, {**groups[0], "params": [other]}):
        optimizer.step()
    assert one.tolist() == [1.0, 1.0]
    assert other.tolist() == [0.0, 0.0]
    with pytest.raises(ZeroDivisionError), only(optimizer, {**groups[0], "params": [one]}):
        raise ZeroDivisionError
    assert optimizer.param_groups is groups
