"""Low-rank adaptation with a budget (Zhang et al. 2023, AdaLoRA): y = W x + s P diag(e) Q x, with P [O, R], e [R] and Q [R, I] trained.

The columns of P and the rows of Q are held near orthonormal by a term of the loss, as in the authors' program: the mean over all P and
Q of ||P'P - 1|| and ||QQ' - 1||, times a weight. It belongs to a step, not to its tokens, so each micro-batch adds it in
proportion to its tokens: together that is the whole of it, once.

After each step every number w with gradient g has the sensitivity I = |w g|, of which running means are kept, and of how far it is
from its mean (equations 8 to 10):

    I' = b I' + (1 - b) I,    U' = b U' + (1 - b) |I - I'|,    score(w) = I' U'

A triplet's score is that of its e, and the means of those of its column and its row (equation 7). Those that do not fit the budget have
e = 0; they may come back until the budget is at its end. All of this is state of the run: frozen parameters, which checkpoints hold.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Constant, Layout, Normal, Parameter
from llmfactory.model.skeleton import Skeleton
from llmfactory.parallel.weights import local, put, whole
from llmfactory.peft.adalora_spec import Adalora
from llmfactory.peft.lora import LowRankAdapter, linear_targets
from llmfactory.peft.part import ADAPTERS, Adapted, adapters, attach

STD = 0.02
"""Of the first P and Q."""
TRAINED = ("a", "b", "e")
TERM = "orthogonality"


class AdaloraAdapter(LowRankAdapter):
    """Q is `a` [R, I], P is `b` [O, R], and `e` [R]; beside each its running means. `kept` [R]: 1, or 0 for what the last choice left
    out."""

    term: str = TERM

    def __init__(self, spec: Adalora, name: str, linear: nn.Linear, declared: Parameter) -> None:
        super().__init__(spec, name, linear, declared, Normal(STD))
        self.e = nn.Parameter(torch.empty(spec.rank))
        for own in TRAINED:
            for kind in ("sensitivity", "uncertainty"):
                room = torch.empty_like(self.get_parameter(own))
                self.register_parameter(f"{own}_{kind}", nn.Parameter(room, requires_grad=False))
        self.kept = nn.Parameter(torch.empty(spec.rank), requires_grad=False)

    def declare(self) -> dict[str, Parameter]:
        declared = {own: Parameter(Normal(STD)) for own in "ab"} | {"e": Parameter(Constant(0.0), decay=False)}
        for own in TRAINED:
            for kind in ("sensitivity", "uncertainty"):
                declared[f"{own}_{kind}"] = Parameter(Constant(0.0), Layout.replicated, decay=False)
        return {**declared, "kept": Parameter(Constant(1.0), decay=False)}

    @property
    def own_terms(self) -> tuple[str, ...]:
        return (self.term,)

    def product(self, x: Tensor, linear: Adapted, base: Callable[[Tensor], Tensor]) -> Tensor:
        y = base(x)
        z = F.linear(self.dropped(x), self.a)
        return torch.add(y, F.linear(z * self.e.to(z.dtype), self.b), alpha=self.scale)

    def delta(self) -> Tensor:
        return self.scale * ((self.b * self.e) @ self.a)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight + self.delta().to(weight.dtype)

    def restored(self, weight: Tensor) -> Tensor:
        return weight - self.delta().to(weight.dtype)

    def oblique(self) -> Tensor:
        """How far P and Q are from orthonormal, added up."""
        wide = torch.promote_types(self.a.dtype, torch.float32)
        with torch.autocast(self.a.device.type, enabled=False):
            a, b = self.a.to(wide), self.b.to(wide)
            one = torch.eye(len(a), dtype=wide, device=a.device)
            return (a @ a.T - one).norm() + (b.T @ b - one).norm()  # type: ignore[no-any-return]


# ---- putting it in


def adapt(spec: Adalora, model: Skeleton, name: str) -> None:
    """Put an adapter beside each target, and the term on the nearest part around it that is told the context."""
    paths = {module: path for path, module in model.named_modules()}
    held: dict[str, list[AdaloraAdapter]] = {}
    for linear, declared in linear_targets(spec, model):
        adapter = AdaloraAdapter(spec, name, linear, declared)
        attach(linear, adapter)
        held.setdefault(_told(model, paths[linear]), []).append(adapter)
    count = 2 * sum(map(len, held.values()))
    for path, own in held.items():
        uses = max(1, sum(f"{path}.".startswith(f"{used}.") for used, _ in model.chain()))  # a block may be run several times
        for adapter in own:
            adapter.term = f"encoder_{TERM}" if model.spec.graph == "encoder_decoder" and path.startswith("encoder.") else TERM
        weigh = partial(_penalize, own, spec.orthogonality / (count * uses))
        model.get_submodule(path).register_forward_pre_hook(weigh, with_kwargs=True)


def _told(model: nn.Module, path: str) -> str:
    while path:
        path = path.rpartition(".")[0]
        if "context" in inspect.signature(type(model.get_submodule(path)).forward).parameters:
            break
    return path


def _penalize(own: list[AdaloraAdapter], weight: float, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The step's term, as large a part of it as these are of the step's tokens."""
    context = next(one for one in (*args, *kwargs.values()) if isinstance(one, Context))
    if context.record is None:
        return
    whole = context.positions.shape[0] * context.positions.shape[-1]
    tokens = whole if context.segments is None else (context.segments > 0).sum()
    for adapter in own:
        if adapter.active:
            context.record.add(adapter.term, tokens * (weight * adapter.oblique()))


# ---- after a step


@torch.no_grad()
def stepped(spec: Adalora, model: nn.Module, step: int, taken: Tensor) -> None:
    """Learn from the gradients of a step, counted from 0, and choose what stays; `taken`: the step reached the weights."""
    found = [one for _, one in adapters(model) if isinstance(one, AdaloraAdapter)]
    end = spec.total_steps - spec.last_steps
    if step <= end:
        if step < end:
            for adapter in found:
                learn(adapter, spec.smoothing, taken)
        chooses = step == end or (step > spec.first_steps and step % spec.interval == 0)
        if chooses:
            choose(found, spec.budget(step, len(found)) if step < end else spec.target_rank * len(found))
    if step > spec.first_steps:
        for adapter in found:
            if step >= end or chooses:
                adapter.e.mul_(adapter.kept)


def learn(adapter: AdaloraAdapter, smoothing: float, taken: Tensor) -> None:
    """Running means of sensitivity and uncertainty, of this process's pieces."""
    for own in TRAINED:
        weight = adapter.get_parameter(own)
        if weight.grad is None:
            continue
        mean, doubt = (local(adapter.get_parameter(f"{own}_{kind}")) for kind in ("sensitivity", "uncertainty"))
        now = (local(weight) * local(weight.grad)).abs()
        new = smoothing * mean + (1 - smoothing) * now
        mean.copy_(torch.where(taken, new, mean))
        doubt.copy_(torch.where(taken, smoothing * doubt + (1 - smoothing) * (now - mean).abs(), doubt))


def choose(found: list[AdaloraAdapter], budget: int) -> None:
    """Keep the triplets with the highest scores, of all maps; the same on every process."""
    scores = [scores_of(adapter) for adapter in found]
    every = torch.cat(scores)
    if budget >= len(every):
        below = every.new_tensor(-torch.inf)
    else:
        below = every.kthvalue(len(every) - budget).values
    for adapter, score_R in zip(found, scores, strict=True):
        put(adapter.kept, (score_R > below).to(adapter.kept.dtype))


def scores_of(adapter: AdaloraAdapter) -> Tensor:
    """[R], of whole triplets."""
    a_RI, b_OR, e_R = (
        whole(adapter.get_parameter(f"{own}_sensitivity")) * whole(adapter.get_parameter(f"{own}_uncertainty")) for own in TRAINED
    )
    return e_R + a_RI.mean(1) + b_OR.mean(0)


def ranks(model: nn.Module) -> dict[str, int]:
    """How many triplets are left beside each map, by its path."""
    ends = f".{ADAPTERS}."
    return {
        path.partition(ends)[0]: int(whole(one.kept).sum()) for path, one in adapters(model) if isinstance(one, AdaloraAdapter)
    }
