"""The equal mean of the last k weights, taken every so many steps (Kaddour 2022, section 2).

The n-th (from 0) lie in slot n mod k, where they replace the oldest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.optim.average.average import Average
from llmfactory.optim.average.spec import Lawa
from llmfactory.parallel.weights import local


class LawaAverage(Average):
    def __init__(self, spec: Lawa) -> None:
        super().__init__()
        self.spec = spec

    @torch.no_grad()
    def update(self, step: int) -> None:
        if (step + 1) % self.spec.every:
            return
        slot = str(self.updates % self.spec.last)
        for name, parameter in self.parameters.items():
            piece = self.piece(name, slot)
            (self.room(name, slot) if piece is None else piece).copy_(local(parameter))
        self.updates += 1

    def weight(self, name: str) -> Tensor | None:
        slots = self.kept.get(name)
        if not slots:
            return None
        total = torch.zeros_like(local(next(iter(slots.values()))))
        for slot in sorted(slots, key=int):
            total += local(slots[slot])
        return total / len(slots)
