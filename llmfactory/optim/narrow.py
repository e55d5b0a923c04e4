"""Steps in float32 over weights that are kept in bfloat16.

A weight in bfloat16 has 8 bits of significand, so a step below 1/512 of it is lost when the sum is rounded to nearest. Around any
optimizer, each of its steps here is: widen weights, gradients and state to float32, let it step, and keep what comes out

| `Rounding` | of a weight | of state shaped like it | after Adam, bytes a weight |
|---|---|---|---|
| nearest | the nearest bfloat16 | the same | 2 + 4 |
| stochastic | bfloat16 rounded at random | the same | 2 + 4 |
| compensated | the nearest bfloat16, and in a second one what that is off by (Kahan 1965; Zamirai et al. 2020, algorithm 1) | rounded at random | 4 + 4 |
| master | float32, and the nearest bfloat16 of it for the model (Micikevicius et al. 2018, section 3.1) | float32 | 6 + 8 |

Two bfloat16 numbers have 16 bits of significand together, so `compensated` loses what is below 2^-17 of a weight.

The random bits of an element are a function of (seed, step, name of the parameter, name of the state, number of the element in the
whole tensor), so they are the same under every layout and in a resumed run. Other state (counters, means of rows) stays as it is.
Weights are widened some at a time, so that float32 copies of all of them never stand together (but for `master`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llmfactory.core.sharding import name_seed
from llmfactory.kernel.random_bits import numbers_of, random_bits
from llmfactory.kernel.stochastic_round import stochastic_round
from llmfactory.optim.optimizer import without_closure
from llmfactory.parallel.stepping import only
from llmfactory.parallel.weights import box, local
from llmfactory.precision.spec import Rounding

AT_ONCE = 2**24
"""Elements that are widened at a time."""
MASTER, REST = "master", "rest"
"""Names of the float32 copy and of what the weight is off by, among a parameter's state."""


class NarrowWeights(Optimizer):
    """`inner`, made over the bfloat16 parameters, steps for them; its own state stays empty, that of the parameters is here. `names`:
    of all of them. `at`, set before a step, is its number."""

    def __init__(self, inner: Optimizer, rounding: Rounding, names: Mapping[nn.Parameter, str], seed: int) -> None:
        super().__init__(inner.param_groups, inner.defaults)
        self.inner, self.rounding, self.names, self.seed, self.at = inner, rounding, names, seed, 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step of the inner optimizer over all weights that have a gradient."""
        without_closure(closure)
        for group in self.param_groups:
            for weights in _some_at_a_time([weight for weight in group["params"] if weight.grad is not None]):
                self._step(weights, group)

    def _step(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        wide = [self._widened(weight) for weight in weights]
        state: dict[Tensor, Any] = {one: self._wide_state(weight) for weight, one in zip(weights, wide, strict=True)}
        self.inner.state = defaultdict(dict, state)
        with only(self.inner, {**group, "params": wide}):
            self.inner.step()
        for weight, one in zip(weights, wide, strict=True):
            self._keep(weight, one, self.inner.state[one])
        self.inner.state = defaultdict(dict)

    def _widened(self, weight: nn.Parameter) -> nn.Parameter:
        """The weight in float32, with its gradient."""
        state = self.state[weight]
        if self.rounding is Rounding.master:
            exact = state[MASTER] if MASTER in state else weight.detach().float()
        else:
            exact = weight.detach().float()
            if REST in state:
                exact += state[REST]
        wide = nn.Parameter(exact)
        assert weight.grad is not None
        wide.grad = weight.grad.float()
        return wide

    def _wide_state(self, weight: nn.Parameter) -> dict[str, Any]:
        """What the inner optimizer is to find."""
        found = {key: value for key, value in self.state[weight].items() if key not in (MASTER, REST)}
        return {key: value.float() if _narrow(value) else value for key, value in found.items()}

    def _keep(self, weight: nn.Parameter, wide: nn.Parameter, state: dict[str, Any]) -> None:
        exact = wide.detach()
        if self.rounding is Rounding.master:
            self.state[weight] = {**state, MASTER: exact}
            local(weight).copy_(local(exact))
            return
        kept = {key: self._narrowed(weight, key, value) for key, value in state.items()}
        if self.rounding is Rounding.stochastic:
            local(weight).copy_(self._rounded(weight, "weight", local(exact)))
        else:
            local(weight).copy_(local(exact))
            if self.rounding is Rounding.compensated:
                kept[REST] = (exact - weight.detach().float()).to(torch.bfloat16)
        self.state[weight] = kept

    def _narrowed(self, weight: nn.Parameter, key: str, value: Any) -> Any:
        """State that has a number for each of the weight's, in bfloat16."""
        if not isinstance(value, Tensor) or value.dtype is not torch.float32 or value.shape != weight.shape or not value.dim():
            return value
        found = value.to(torch.bfloat16)
        if self.rounding is not Rounding.nearest:
            local(found).copy_(self._rounded(weight, key, local(value)))
        return found

    def _rounded(self, weight: nn.Parameter, what: str, piece: Tensor) -> Tensor:
        """A float32 piece of what belongs to a weight, rounded at random."""
        key = name_seed(self.seed, f"round {self.at} {self.names[weight]} {what}")
        bits = random_bits(numbers_of(*box(weight), tuple(weight.shape), piece.device), key)
        return stochastic_round(piece.contiguous(), bits)


def _narrow(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype is torch.bfloat16


def _some_at_a_time(weights: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """In order, as many as `AT_ONCE` allows, one at least."""
    some: list[nn.Parameter] = []
    size = 0
    for weight in weights:
        number = local(weight).numel()
        if some and size + number > AT_ONCE:
            yield some
            some, size = [], 0
        some.append(weight)
        size += number
    if some:
        yield some
