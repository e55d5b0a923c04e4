"""Low-rank adaptation of directions beside trained magnitudes (Liu et al. 2024, DoRA).

W' = m (W + s B A) / n with n the norm of each row of W + s B A and m [O] trained, which begins as the norm of each row of W, so that
training starts at W. n is held fixed in the backward pass (section 4.3). It is found without making the sum:

    n^2 = ||W||^2 + 2 s <B, W A'> + s^2 <B, B (A A')>        (rows of each)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfactory.core.errors import UserError
from llmfactory.core.sharding import Constant, Parameter, Uniform
from llmfactory.model.skeleton import Skeleton
from llmfactory.peft.lora import LowRankAdapter, linear_targets
from llmfactory.peft.lora_spec import Dora
from llmfactory.peft.part import Adapted, First, attach
from llmfactory.peft.targets import targets


class DoraAdapter(LowRankAdapter):
    """See the module's text; m is `magnitude` [O]."""

    needs_base = True

    def __init__(self, spec: Dora, name: str, linear: nn.Linear, declared: Parameter) -> None:
        super().__init__(spec, name, linear, declared, Uniform(linear.in_features**-0.5))
        self.magnitude = nn.Parameter(torch.empty(linear.out_features))

    def declare(self) -> dict[str, Parameter]:
        b = super().declare()["b"]
        magnitude = Parameter(Constant(1.0), b.layout, decay=False, unit=b.unit, shared=b.shared)
        return {**super().declare(), "magnitude": magnitude}

    def product(self, x: Tensor, linear: Adapted, base: Callable[[Tensor], Tensor]) -> Tensor:
        y = base(x)
        y = torch.add(y, F.linear(F.linear(self.dropped(x), self.a), self.b), alpha=self.scale)
        return y * self.factor(linear.matrix_below(self)).to(y.dtype)

    def factor(self, weight: Tensor) -> Tensor:
        """[O], m / n."""
        return self.magnitude / self.norms(weight)

    @torch.no_grad()
    def norms(self, weight: Tensor) -> Tensor:
        """[O], n, at least in float32."""
        wide = torch.promote_types(weight.dtype, torch.float32)
        with torch.autocast(weight.device.type, enabled=False):
            w, a, b = weight.to(wide), self.a.to(wide), self.b.to(wide)
            crossed = (b * (w @ a.T)).sum(1)
            square = (b * (b @ (a @ a.T))).sum(1)
            return (w.square().sum(1) + 2 * self.scale * crossed + self.scale**2 * square).sqrt()

    def matrix(self, weight: Tensor) -> Tensor:
        return self.factor(weight).to(weight.dtype)[:, None] * (weight + self.delta().to(weight.dtype))

    def noted(self, weight: Tensor) -> Tensor:
        return self.factor(weight)

    def restored(self, weight: Tensor) -> Tensor:
        assert self.note is not None
        return weight / self.note.to(weight.dtype)[:, None] - self.delta().to(weight.dtype)

    def first(self, weight: Tensor) -> First:
        return First({"magnitude": weight.norm(dim=1)})


def adapt(spec: Dora, model: Skeleton, name: str) -> None:
    """Put an adapter beside each target."""
    for path, module in targets(model, spec.targets).items():
        if not isinstance(module, nn.Linear):
            raise UserError(
                f"{path} is a stack of experts' matrices, beside which peft=dora puts nothing: name others in peft.targets"
            )
    for linear, declared in linear_targets(spec, model):
        attach(linear, DoraAdapter(spec, name, linear, declared))
