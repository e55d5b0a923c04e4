"""Optimizer steps within the backward pass (Lv et al. 2023, LOMO, section 3.1): a parameter is stepped as soon as its gradient is
there, and the gradient is freed at once, so that never more than a few of them exist.

The steps are those of the optimizer itself, which finds a single parameter in its groups each time: its state stays where it is, and
so do checkpoints. That asks for gradients which are complete when they come: one micro-batch, one process, no scaling of the loss,
nothing that looks at all gradients first (a rule of the config refuses the rest).

A gradient that is not finite ends the run. Parameters that came before it have had their step by then; no checkpoint is written.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llmfactory.parallel.stepping import only


class InBackward:
    """Steps the parameters of an optimizer from hooks on their gradients."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._groups: dict[int, dict[str, Any]] = {}
        self._squares: list[Tensor] = []
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(partial(self._step, number))

    @torch.no_grad()
    def _step(self, number: int, parameter: nn.Parameter) -> None:
        gradient, groups = parameter.grad, self.optimizer.param_groups
        assert gradient is not None
        norm = torch.linalg.vector_norm(gradient)
        self._squares.append(norm.square())
        if bool(norm.isfinite()):
            # What an optimizer counts in a group must count once a step: all parameters begin with what the step began with.
            before = self._groups.setdefault(number, {key: value for key, value in groups[number].items() if key != "params"})
            alone = {**before, "params": [parameter]}
            with only(self.optimizer, alone):
                self.optimizer.step()
            groups[number].update({key: value for key, value in alone.items() if key != "params"})
        parameter.grad = None

    def finish(self) -> Tensor:
        """The backward pass is over: the norm of all gradients of the step."""
        total = torch.stack(self._squares).sum().sqrt() if self._squares else torch.zeros(())
        self._squares, self._groups = [], {}
        return total
