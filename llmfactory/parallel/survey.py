"""Sums over a whole optimizer step that a loss depends on (the KL of KTO): a pass without gradients before the first backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmfactory.core.batch import SURVEY, rows
from llmfactory.parallel.mesh import World

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


@torch.no_grad()
def surveyed(pieces: list[tuple[Batch, float]], survey: Callable[[Batch], Tensor], world: World) -> list[tuple[Batch, float]]:
    """Micro-batches, each with how much of it counts here, and with what must be known of all of them together, on all processes.

    `survey`: the sums [n] of one, on this process. Called by every process, with as many micro-batches.
    """
    total_1N = world.sum_tensor(torch.stack([share * survey(piece).double() for piece, share in pieces]).sum(0))[None]
    return [({**piece, SURVEY: total_1N.expand(rows(piece), -1)}, share) for piece, share in pieces]
