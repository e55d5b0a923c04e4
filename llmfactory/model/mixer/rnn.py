"""Plain recurrence (Elman 1990): h_t = f(W x_t + U h_{t-1} + b)."""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.model.frame import Site
from llmfactory.model.mixer.recurrence import Recurrence
from llmfactory.model.mixer.spec import Rnn, Squash

KERNELS = {Squash.tanh: torch.rnn_tanh, Squash.relu: torch.rnn_relu}


class ElmanNetwork(Recurrence):
    """[B, T, H] -> [B, T, H]; its state is h."""

    adds_up_narrow = True

    def __init__(self, spec: Rnn, site: Site) -> None:
        super().__init__(site, gates=1, bias=spec.bias, state_bias=False)
        self.layers = KERNELS[spec.activation]

    def steps(self, x_NH: Tensor, sizes: Tensor, states_1PH: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        weights = self.weights()
        return self.layers(x_NH, sizes, states_1PH[0], weights, len(weights) == 4, 1, 0.0, self.training, False)
