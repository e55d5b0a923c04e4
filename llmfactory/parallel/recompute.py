"""Activation recomputation (Chen et al. 2016): of each block only the input is kept; the rest is computed again in the backward
pass, with the same dropout masks."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from llmfactory.parallel.shard import units


def recompute(root: nn.Module) -> None:
    """Let the blocks of `root` keep their inputs only, in place. Names of parameters stay."""
    for block in units(root):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
