"""Steps of some of an optimizer's parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer


@contextmanager
def only(optimizer: Optimizer, group: dict[str, Any]) -> Iterator[None]:
    """An optimizer that has no other group than this, for a step; its state stays where it is."""
    before = optimizer.param_groups
    optimizer.param_groups = [group]
    try:
        yield
    finally:
        optimizer.param_groups = before
