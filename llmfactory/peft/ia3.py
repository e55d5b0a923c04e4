"""Trained factors of inner activations (Liu et al. 2022, section 3.3): what a linear map gives, bias and all, or what it reads, is
multiplied number by number with a trained vector that begins at 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from llmfactory.core.errors import UserError
from llmfactory.core.sharding import Constant, Layout, Parameter
from llmfactory.model.declarations import declarations
from llmfactory.model.ffn.experts import Experts
from llmfactory.model.packed import packed
from llmfactory.model.skeleton import Skeleton
from llmfactory.peft.lora_spec import Ia3
from llmfactory.peft.part import Adapted, LinearAdapter, attach
from llmfactory.peft.targets import insist_called, linear_maps, matches, targets

OUTPUTS, INPUTS = ("k", "v", "kv"), ("down",)
"""Names of linear maps whose outputs and inputs are scaled, where nothing else is said."""


class Ia3Adapter(LinearAdapter):
    """`scale` [O] beside a map's outputs, or [I] beside its inputs."""

    def __init__(self, name: str, linear: nn.Linear, declared: Parameter, inputs: bool) -> None:
        super().__init__(name)
        self.declared, self.inputs = declared, inputs
        self.scale = nn.Parameter(torch.empty(linear.in_features if inputs else linear.out_features))

    def declare(self) -> dict[str, Parameter]:
        start, layout = Constant(1.0), self.declared.layout
        if self.inputs:
            return {"scale": Parameter(start, Layout.column if layout is Layout.row else Layout.replicated, decay=False)}
        if layout is not Layout.column:
            return {"scale": Parameter(start, decay=False)}
        return {"scale": Parameter(start, layout, decay=False, unit=self.declared.unit, shared=self.declared.shared)}

    def product(self, x: Tensor, linear: Adapted, base: Callable[[Tensor], Tensor]) -> Tensor:
        if self.inputs:
            return base(x * self.scale.to(x.dtype))
        y = base(x)
        return y * self.scale.to(y.dtype)

    def matrix(self, weight: Tensor) -> Tensor:
        scale = self.scale.to(weight.dtype)
        return weight * scale if self.inputs else weight * scale[:, None]

    def restored(self, weight: Tensor) -> Tensor:
        scale = self.scale.to(weight.dtype)
        return weight / scale if self.inputs else weight / scale[:, None]

    def offset(self, bias: Tensor) -> Tensor:
        return bias if self.inputs else bias * self.scale.to(bias.dtype)

    def restored_offset(self, bias: Tensor) -> Tensor:
        return bias if self.inputs else bias / self.scale.to(bias.dtype)


def adapt(spec: Ia3, model: Skeleton, name: str) -> None:
    """Put factors beside each target."""
    declared = {**declarations(model), **{name: part.declared for name, part in packed(model).items()}}
    for inputs, patterns, usual in ((False, spec.outputs, OUTPUTS), (True, spec.inputs, INPUTS)):
        chosen = targets(model, _known(model, usual) if patterns is None else patterns)
        insist_called(model, chosen, "nothing can be scaled")
        for path, linear in chosen.items():
            if isinstance(linear, Experts):
                what = "inputs" if inputs else "outputs"
                raise UserError(
                    f"{path} is a stack of experts' matrices, whose {what} are not scaled: name others in peft.{what}, or none ([])"
                )
            assert isinstance(linear, nn.Linear)
            attach(linear, Ia3Adapter(name, linear, declared[f"{path}.weight"], inputs))


def _known(model: Skeleton, patterns: Sequence[str]) -> list[str]:
    """Those that there are in this model."""
    return [pattern for pattern in patterns if any(matches(name, pattern) for name in linear_maps(model))]
