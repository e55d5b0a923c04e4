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
from llmfactory.kernel.grouped_linear import grouped_linear
from llmfactory.kernel.low_rank_linear import low_rank_linear
from llmfactory.model.declarations import declarations
from llmfactory.model.ffn.experts import Experts
from llmfactory.model.packed import packed
from llmfactory.model.skeleton import Skeleton
from llmfactory.peft.lora_spec import Lora, LowRankSpec, Start
from llmfactory.peft.part import Adapted, ExpertsAdapter, First, LinearAdapter, StackAdapter, adapters, attach
from llmfactory.peft.targets import insist_called, targets


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

    def __init__(self, spec: LowRankSpec, name: str, linear: nn.Linear, declared: Parameter, start: Filled) -> None:
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
        weight = None if self.training and self.dropout else linear.alone()
        if weight is not None:
            return low_rank_linear(x, weight, self.a, self.b, self.scale)
        z = F.linear(self.dropped(x), self.a)
        return torch.add(base(x), F.linear(z, self.b), alpha=self.scale)

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


class StackLora(StackAdapter):
    """s B A beside each matrix of a stack [E, O, I], with A `a` [E, R, I] and B `b` [E, O, R]."""

    def __init__(self, spec: Lora, name: str, stack: Tensor, declared: Parameter) -> None:
        super().__init__(name)
        if spec.start not in (Start.default, Start.gaussian):
            raise UserError(
                f"beside experts' matrices A starts as default or gaussian, not {spec.start.name}: use peft.start=default"
            )
        n_experts, outputs, inputs = stack.shape
        self.scale, self.dropout, self.declared = spec.scale, spec.dropout, declared
        self.start: Filled = Normal(1 / spec.rank) if spec.start is Start.gaussian else Uniform(inputs**-0.5)
        self.a = nn.Parameter(torch.empty(n_experts, spec.rank, inputs))
        self.b = nn.Parameter(torch.empty(n_experts, outputs, spec.rank))

    def declare(self) -> dict[str, Parameter]:
        inputs, outputs = self.declared.hidden == 2, self.declared.hidden == 1
        return {
            "a": Parameter(self.start, Layout.expert, hidden=2 if inputs else None),
            "b": Parameter(Constant(0.0), Layout.expert, hidden=1 if outputs else None),
        }

    def visit(self, x_ND: Tensor, ends_E: Tensor, y_NO: Tensor) -> Tensor:
        if self.training and self.dropout:
            x_ND = F.dropout(x_ND, self.dropout)
        return torch.add(y_NO, grouped_linear(grouped_linear(x_ND, self.a, ends_E), self.b, ends_E), alpha=self.scale)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.b @ self.a).to(weight.dtype)

    def restored(self, weight: Tensor) -> Tensor:
        return weight - self.scale * (self.b @ self.a).to(weight.dtype)


def adapt(spec: Lora, model: Skeleton, name: str) -> None:
    """Put an adapter beside each target."""
    chosen = targets(model, spec.targets)
    for linear, declared in linear_targets(spec, model):
        attach(linear, LoraAdapter(spec, name, linear, declared))
    for experts in dict.fromkeys(module for module in chosen.values() if isinstance(module, Experts)):
        holder = ExpertsAdapter(name)
        for stack, declared in experts.declare().items():
            if any(path.rpartition(".")[2] == stack and module is experts for path, module in chosen.items()):
                holder.add_module(stack, StackLora(spec, name, experts.get_parameter(stack), declared))
        attach(experts, holder)


def linear_targets(spec: LowRankSpec, model: Skeleton) -> Iterator[tuple[nn.Linear, Parameter]]:
    """The linear maps that a method is to change, each with the declaration of its matrix."""
    declared = {**declarations(model), **{name: part.declared for name, part in packed(model).items()}}
    chosen = targets(model, spec.targets)
    if spec.dropout:
        insist_called(model, chosen, "nothing can be dropped (peft.dropout=0)")
    for path, module in chosen.items():
        if isinstance(module, nn.Linear):
            yield module, declared[f"{path}.weight"]


def names_of_b(model: nn.Module) -> list[str]:
    """Names of all B."""
    return [f"{path}.b" for path, adapter in adapters(model) if isinstance(adapter, (LowRankAdapter, StackLora))]
