"""AdamW (Loshchilov and Hutter 2019, algorithm 2) in PyTorch's fused implementation: one pass over the weights a step.

Fused also means that a step with non-finite gradients can be left out on a GPU without asking the GPU first: the kernel
takes a `found_inf` flag, see `parallel/strategy.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.adamw import adamw as fused_step

from llmfactory.core.kernel import Kernel
from llmfactory.kernel.adamw import adamw_step_
from llmfactory.optim.optimizer import without_closure
from llmfactory.optim.spec import Adamw, MomentsSpec
from llmfactory.parallel.weights import local


def adamw(spec: Adamw, groups: Iterable[dict[str, Any]]) -> AdamW:
    """The optimizer over `groups`, each with its own weight decay."""
    betas = spec.betas[0], spec.betas[1]
    kind = KernelAdamW if spec.kernel is Kernel.triton else AdamW
    return kind(groups, lr=spec.lr, betas=betas, eps=spec.eps, weight_decay=spec.weight_decay, fused=True)


class KernelAdamW(AdamW):
    """The same step and the same state, by a kernel in Triton for each tensor."""

    found_inf: Tensor | None = None
    """Set by whoever decides on the device whether a step is left out."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of all weights that have a gradient."""
        without_closure(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32, device=local(weight).device)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
                adamw_step_(
                    local(weight),
                    local(weight.grad),
                    local(state["exp_avg"]),
                    local(state["exp_avg_sq"]),
                    state["step"],
                    lr=group["lr"],
                    betas=group["betas"],
                    eps=group["eps"],
                    decay=group["weight_decay"],
                    found_inf=self.found_inf,
                )


def adamw_step(
    states: MutableMapping[Tensor, dict[str, Any]], weights: list[Tensor], spec: MomentsSpec, *, lr: float, decay: float
) -> None:
    """The same step of some weights, which have gradients, for optimizers that treat only others in their own way."""
    for weight in weights:
        if not states[weight]:
            step = torch.zeros((), device=local(weight).device)
            states[weight].update(step=step, mean=torch.zeros_like(weight), square=torch.zeros_like(weight))
    found = [states[weight] for weight in weights]
    fused_step(
        weights,
        [weight.grad for weight in weights if weight.grad is not None],
        [state["mean"] for state in found],
        [state["square"] for state in found],
        [],
        [state["step"] for state in found],
        fused=True,
        amsgrad=False,
        beta1=spec.betas[0],
        beta2=spec.betas[1],
        lr=lr,
        weight_decay=decay,
        eps=spec.eps,
        maximize=False,
    )
