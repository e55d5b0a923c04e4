"""Low-rank adaptation (Hu et al. 2022, section 4.1): y = W x + s B A x with W [O, I] frozen, A [R, I] and B [O, R] trained.

B A x costs R (I + O) for each token instead of the I O of W x, and W's gradient is never made.

Over a tensor-parallel group A and B are cut as W is: B along the outputs of a column-cut map, A along the inputs of a row-cut one.
The partial results B A x of a row-cut map's pieces are then summed together with its own, so that no message is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from llmfactory.core.errors import UserError
from llmfactory.core.sharding import Constant, Layout, Normal, Parameter, Uniform
from llmfactory.core.sharding import Start as Filled
from llmfactory.model.declarations import declarations
from llmfactory.model.ffn.experts import Experts
from llmfactory.model.packed import packed
from llmfactory.model.skeleton import Skeleton
from llmfactory.peft.lora_spec import Lora, LowRank, Start
from llmfactory.peft.part import Adapted, First, LinearAdapter, adapters, attach
from llmfactory.peft.targets import targets


@dataclass(frozen=True, slots=True)
class Orthonormal:
    """A matrix [R, I] whose rows are orthonormal, or its columns where it has more rows."""

    def fill(self, tensor: Tensor, generator: Generator) -> None:
        long, short = max(tensor.shape), min(tensor.shape)
        q, r = torch.linalg.qr(torch.randn(long, short, generator=generator, dtype=torch.float64))
        q = q * r.diagonal().sign()
        tensor.copy_(q.T if tensor.shape[0] == short else q)

    def __str__(self) -> str:
        return "orthonormal rows"


class LowRankAdapter(LinearAdapter):
    """s B A beside a map, with A `a` [R, I] and B `b` [O, R]."""

    def __init__(self, spec: LowRank, name: str, linear: nn.Linear, declared: Parameter, start: Filled) -> None:
        super().__init__(name)
        self.scale, self.dropout, self.start, self.declared = spec.scale, spec.dropout, start, declared
        self.a = nn.Parameter(torch.empty(spec.rank, linear.in_features))
        self.b = nn.Parameter(torch.empty(linear.out_features, spec.rank))

    def declare(self) -> dict[str, Parameter]:
        column, row = self.declared.layout is Layout.column, self.declared.layout is Layout.row
        whole = Parameter(Constant(0.0))
        return {
            "a": Parameter(self.start, Layout.row if row else Layout.replicated),
            "b": replace(self.declared, start=Constant(0.0), decay=True) if column else whole,
        }

    def delta(self) -> Tensor:
        """[O, I], what is added to the matrix."""
        return self.scale * (self.b @ self.a)

    def dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


class LoraAdapter(LowRankAdapter):
    """See the module's text."""

    def __init__(self, spec: Lora, name: str, linear: nn.Linear, declared: Parameter) -> None:
        super().__init__(spec, name, linear, declared, _filled(spec, linear))
        self.takes_from_base = spec.start is Start.pissa

    def product(self, x: Tensor, linear: Adapted, base: Callable[[Tensor], Tensor]) -> Tensor:
        y = base(x)
        z = F.linear(self.dropped(x), self.a)
        return torch.add(y, F.linear(z, self.b), alpha=self.scale)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight + self.delta().to(weight.dtype)

    def restored(self, weight: Tensor) -> Tensor:
        return weight - self.delta().to(weight.dtype)

    @property
    def needs_base(self) -> bool:
        return self.takes_from_base

    def first(self, weight: Tensor) -> First:
        """PiSSA (Meng et al. 2024, equations 2 to 4): W = U S V'; A and B hold the first R of them, W what is left."""
        if not self.takes_from_base:
            return First({})
        rank, wide = self.a.shape[0], weight.to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
        u, s, v = torch.linalg.svd(wide, full_matrices=False)
        root = (s[:rank] / self.scale).sqrt()
        missing = rank - len(root)  # of a rank above that of any matrix of this size
        a, b = F.pad(root[:, None] * v[:rank], (0, 0, 0, missing)), F.pad(u[:, :rank] * root, (0, missing))
        return First({"a": a, "b": b}, (wide - self.scale * (b @ a)).to(weight.dtype))


def _filled(spec: Lora, linear: nn.Linear) -> Filled:
    if spec.start is Start.gaussian:
        return Normal(1 / spec.rank)
    if spec.start is Start.orthogonal:
        return Orthonormal()
    return Uniform(1 / math.sqrt(linear.in_features))


def adapt(spec: Lora, model: Skeleton, name: str) -> None:
    """Put an adapter beside each target."""
    for linear, declared in linear_targets(spec, model):
        attach(linear, LoraAdapter(spec, name, linear, declared))


def linear_targets(spec: LowRank, model: Skeleton) -> Iterator[tuple[nn.Linear, Parameter]]:
    """The linear maps that a method is to change, each with the declaration of its matrix."""
    declared = {**declarations(model), **{name: part.declared for name, part in packed(model).items()}}
    for path, module in targets(model, spec.targets).items():
        if isinstance(module, Experts):
            raise UserError(f"{path} is a stack of experts' matrices, beside which this method puts nothing")
        assert isinstance(module, nn.Linear)
        yield module, declared[f"{path}.weight"]


def names_of_b(model: nn.Module) -> list[str]:
    """Names of all B."""
    return [f"{path}.b" for path, adapter in adapters(model) if isinstance(adapter, LowRankAdapter)]
