"""Long short-term memory (Hochreiter and Schmidhuber 1997) with a forget gate (Gers et al. 2000).

i, f, o = sigmoid(...), g = tanh(...) of W x_t + U h_{t-1} + b;  c_t = f c_{t-1} + i g;  h_t = o tanh(c_t)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from llmfactory.core.sharding import Parameter
from llmfactory.model.frame import Site
from llmfactory.model.mixer.recurrence import Recurrence
from llmfactory.model.mixer.spec import Lstm


@dataclass(frozen=True, slots=True)
class ForgetBias:
    """`value` for the forget gate, the second of four, 0 for the others."""

    value: float

    def fill(self, tensor: Tensor, generator: Generator) -> None:
        tensor.zero_().view(4, -1)[1] = self.value

    def __str__(self) -> str:
        return f"forget gate {self.value:g}, else 0"


class LongShortTermMemory(Recurrence):
    """[B, T, H] -> [B, T, H]; its state is h and c. Gates stand in PyTorch's order: i, f, g, o."""

    n_states = 2

    def __init__(self, spec: Lstm, site: Site) -> None:
        super().__init__(site, gates=4, bias=spec.bias, state_bias=False)
        self.forget_bias = spec.forget_bias

    def declare(self) -> dict[str, Parameter]:
        declared = super().declare()
        if self.forget_bias:
            declared["x.bias"] = Parameter(ForgetBias(self.forget_bias), decay=False)
        return declared

    def steps(self, x_NH: Tensor, sizes: Tensor, states_1PH: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        weights = self.weights()
        return torch.lstm(x_NH, sizes, states_1PH, weights, len(weights) == 4, 1, 0.0, self.training, False)
