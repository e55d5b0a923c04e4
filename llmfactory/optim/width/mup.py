"""Maximal update parametrization (Yang et al. 2022, "Tensor programs V: tuning large neural networks via zero-shot hyperparameter
transfer", table 3, for Adam).

A model of some width and the base model, whose rates and first weights are given, are compared parameter by parameter. With r how
many times as many inputs a matrix has as the base's:

| | inputs grow | outputs grow | std of the first weights | learning rate | decay |
|---|---|---|---|---|---|
| hidden matrix | yes | yes | 1 / sqrt(r) | 1 / r | r |
| output matrix | yes | no | 1 / r | 1 / r | r |
| input matrix, table, vector | no | yes | 1 | 1 | 1 |

Decay is multiplied by the learning rate in a step, so a matrix shrinks as fast at every width.

Table 8 of the paper says the same with factors in the forward pass: Adam's steps do not see the size of a gradient, so a factor 1/r
on the logits is one on the head's first weights and on its rate. That is how it is done here: the model itself stays a plain one, for
every layout, in checkpoints and in what is exported. Two factors remain, as keys that models have anyway: attention scores shrink with
the width of a head (`model.attention.scale`), and the logits of a head that borrows the embedding with that of the model
(`model.head.scale`); a rule insists on them.

Adam's `eps` is not scaled: where it matters beside the root of the mean square, it matters more in wider models.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from llmfactory.core.errors import UserError
from llmfactory.core.sharding import Constant, Normal, Parameter, Start, Uniform
from llmfactory.model.declarations import declarations

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, slots=True)
class Times:
    """Another start, multiplied by a number."""

    start: Start
    factor: float

    def fill(self, tensor: Tensor, generator: Generator) -> None:
        self.start.fill(tensor, generator)
        tensor.mul_(self.factor)

    def __str__(self) -> str:
        return f"{self.start}, times {self.factor:.4g}"


def scaled(model: nn.Module, base: nn.Module) -> dict[str, Parameter]:
    """What the parts of `model` declare, with the first weights and the rates of its width.

    Raises:
        UserError: the base has other parameters, or a part does not say how one of its matrices is used.
    """
    declared, before = declarations(model), declarations(base)
    shapes = {name: tuple(one.shape) for name, one in model.named_parameters()}
    narrow = {name: tuple(one.shape) for name, one in base.named_parameters()}
    if other := sorted(shapes.keys() ^ narrow.keys()):
        raise UserError(
            f"optim.width.base: the narrow model must have the same parameters, and {other[0]} is in one of the two only"
        )
    return {name: _scaled(name, one, before[name], shapes[name], narrow[name]) for name, one in declared.items()}


def _scaled(name: str, own: Parameter, base: Parameter, shape: tuple[int, ...], narrow: tuple[int, ...]) -> Parameter:
    if len(shape) != len(narrow):
        raise UserError(f"optim.width.base: {name} has {len(narrow)} dimensions in the narrow model, {len(shape)} in this one")
    grown = {dim: n / m for dim, (n, m) in enumerate(zip(shape, narrow, strict=True)) if n != m}
    if not grown:
        return own
    if own.fan_in is None and len(grown) > 1:
        raise UserError(
            f"optim.width=mup: {name} {list(shape)} grows along {len(grown)} dimensions, and its part does not say which of them "
            "a product sums over; use optim/width=none"
        )
    inputs = 1.0 if own.fan_in is None else grown.pop(own.fan_in, 1.0)
    factor = inputs**-0.5 if grown else 1 / inputs
    return dataclasses.replace(own, start=_start(name, own.start, base.start, factor), rate=1 / inputs)


def _start(name: str, own: Start, base: Start, factor: float) -> Start:
    """The base's first values times a factor; what depends on more than a number must not be scaled."""
    if isinstance(base, (Normal, Uniform, Constant)):
        return base if factor == 1.0 else Times(base, factor)
    if factor == 1.0:
        return own
    raise UserError(f"optim.width=mup: the first values of {name} ({base}) follow a rule of their own; use optim/width=none")
