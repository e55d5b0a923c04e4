"""An exponential moving average: mean <- d mean + (1 - d) weights after every `every`-th step, from the first weights on.

d is `decay`, at update n (from 0) at most (1 + n) / (warmup + n), as in TensorFlow's ExponentialMovingAverage.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llmfactory.optim.average.average import Average
from llmfactory.optim.average.spec import Ema
from llmfactory.parallel.weights import local

MEAN = "mean"


class EmaAverage(Average):
    def __init__(self, spec: Ema) -> None:
        super().__init__()
        self.spec = spec

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        super().begin(model, optimizer)
        for name, parameter in self.parameters.items():
            self.room(name, MEAN).copy_(local(parameter))

    def decay(self, number: int) -> float:
        """Share of the mean that update `number` (from 0) keeps."""
        warmup = self.spec.warmup
        return self.spec.decay if warmup is None else min(self.spec.decay, (1 + number) / (warmup + number))

    @torch.no_grad()
    def update(self, step: int) -> None:
        if (step + 1) % self.spec.every:
            return
        share = 1.0 - self.decay(self.updates)
        for name, parameter in self.parameters.items():
            mean = local(self.kept[name][MEAN])
            mean.lerp_(local(parameter).to(mean.dtype), share)
        self.updates += 1

    def weight(self, name: str) -> Tensor | None:
        return self.piece(name, MEAN)
