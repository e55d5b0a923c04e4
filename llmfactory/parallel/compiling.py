"""Blocks through torch.compile, each by itself: what several processes say to each other within a block is compiled as calls of its own.

Experts that are dealt out stay as they are. How many rows travel to them is known only while they do, so a compiler would make
something new of them at every step.
"""

from __future__ import annotations

import torch
from torch import nn

from llmfactory.parallel.expert import experts_of
from llmfactory.parallel.mesh import World
from llmfactory.parallel.shard import units


def compile_blocks(root: nn.Module, world: World) -> None:
    """Let the blocks of `root` be compiled when they first run, in place; in a single process the whole, head and loss included. Before
    FSDP2 gets it, which gathers weights outside of what is compiled."""
    if "ep" in world.groups:
        for _, stack in experts_of(root):
            stack.forward = torch.compiler.disable(stack.forward)  # type: ignore[method-assign,no-untyped-call]
    for module in [root] if world.dense is None else units(root):
        module.compile()
