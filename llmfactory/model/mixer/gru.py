"""Gated recurrent unit (Cho et al. 2014), in the variant that applies the reset gate after the matrix product.

r, z = sigmoid(W x_t + b + U h_{t-1} + d);  n = tanh(W x_t + b + r (U h_{t-1} + d));  h_t = (1 - z) n + z h_{t-1}
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.model.frame import Site
from llmfactory.model.mixer.recurrence import Recurrence
from llmfactory.model.mixer.spec import Gru


class GatedRecurrentUnit(Recurrence):
    """[B, T, H] -> [B, T, H]; its state is h. Gates stand in PyTorch's order: r, z, n."""

    adds_up_narrow = True

    def __init__(self, spec: Gru, site: Site) -> None:
        super().__init__(site, gates=3, bias=spec.bias, state_bias=spec.bias)

    def steps(self, x_NH: Tensor, sizes: Tensor, states_1PH: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        weights = self.weights()
        return torch.gru(x_NH, sizes, states_1PH[0], weights, len(weights) == 4, 1, 0.0, self.training, False)
