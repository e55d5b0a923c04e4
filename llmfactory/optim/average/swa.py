"""The equal mean of weights: mean <- mean + (weights - mean) / n at the n-th that are taken (Izmailov et al. 2018, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.optim.average.average import Average
from llmfactory.optim.average.spec import Swa
from llmfactory.parallel.weights import local

MEAN = "mean"


class SwaAverage(Average):
    def __init__(self, spec: Swa, first_step: int) -> None:
        """`first_step`: weights are taken after so many steps, and every `spec.every` from there on."""
        super().__init__()
        self.spec, self.first_step = spec, first_step

    @torch.no_grad()
    def update(self, step: int) -> None:
        since = step + 1 - self.first_step
        if since < 0 or since % self.spec.every:
            return
        self.updates += 1
        for name, parameter in self.parameters.items():
            mean = self.piece(name, MEAN)
            if mean is None:
                self.room(name, MEAN).copy_(local(parameter))
            else:
                mean.lerp_(local(parameter).to(mean.dtype), 1.0 / self.updates)

    def weight(self, name: str) -> Tensor | None:
        return self.piece(name, MEAN)
