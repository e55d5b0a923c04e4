"""Weights that are used in the place of those that are trained.

Training goes on with its own weights. `used` puts the others into the model for as long as it is measured or saved, and gives it back
its own, bit by bit. What is kept lies as the parameters do, piece by piece, so that no process needs to know of another.

In a checkpoint the model's tensors are those that are used; what training goes on with stands beside the optimizer's state, as
`<parameter>.trained` next to the kept means.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llmfactory.parallel.weights import local

TRAINED = "trained"
"""Key of the weights that are trained."""


class Average(ABC):
    def __init__(self) -> None:
        self.parameters: dict[str, nn.Parameter] = {}
        """Those that learn, by name."""
        self.kept: dict[str, dict[str, Tensor]] = {}
        """By parameter and by a key of one's own, tensors of the parameter's shape and layout, in float32 at least."""
        self.updates = 0
        """How often weights were taken."""
        self.set_aside: dict[str, Tensor] = {}
        """The trained weights, while others are used."""

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Hear of the model once it is laid out and filled, before the first step, and of the optimizer that trains it."""
        self.parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}

    @abstractmethod
    def update(self, step: int) -> None:
        """Take the weights as they stand after a step, counted from 0, if it is one of those."""

    @abstractmethod
    def weight(self, name: str) -> Tensor | None:
        """This process's piece of what is used in the place of a parameter; None: the parameter itself."""

    def room(self, name: str, key: str, dtype: torch.dtype | None = None) -> Tensor:
        """Keep a tensor for a parameter under a key, with undefined values; gives this process's piece of it."""
        parameter = self.parameters[name].detach()
        made = torch.empty_like(parameter, dtype=dtype or torch.promote_types(parameter.dtype, torch.float32))
        self.kept.setdefault(name, {})[key] = made
        return local(made)

    def piece(self, name: str, key: str) -> Tensor | None:
        """This process's piece of what is kept under a key; None: nothing is."""
        made = self.kept.get(name, {}).get(key)
        return None if made is None else local(made)

    # ---- in the model's place

    @torch.no_grad()
    def put(self) -> None:
        """Into the model, for good or until `take_back`; the trained weights are set aside."""
        for name, parameter in self.parameters.items():
            found = self.weight(name)
            if found is not None:
                self.set_aside[name] = parameter.detach().clone()
                local(parameter).copy_(found)

    @torch.no_grad()
    def take_back(self) -> None:
        for name, trained in self.set_aside.items():
            local(self.parameters[name]).copy_(local(trained))
        self.set_aside = {}

    @contextmanager
    def used(self) -> Iterator[None]:
        self.put()
        try:
            yield
        finally:
            self.take_back()

    # ---- in checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it, by `<parameter>.<key>`, while it is used."""
        kept = {f"{name}.{key}": tensor for name, some in self.kept.items() for key, tensor in some.items()}
        return kept | {f"{name}.{TRAINED}": tensor for name, tensor in self.set_aside.items()}

    def state(self) -> dict[str, Any]:
        """What state.json holds of it."""
        return {"kind": type(self).__name__, "updates": self.updates}

    def restore(self, state: Mapping[str, Any] | None, saved: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
        """Room for what a checkpoint holds of it, under the names of `tensors`; `saved`: their formats. Nothing, where it holds
        another average's, or none: then this one begins with the weights as they are."""
        if state is None or state["kind"] != type(self).__name__:
            return {}
        self.updates = int(state["updates"])
        found = {}
        for full_name, dtype in saved.items():
            name, _, key = full_name.rpartition(".")
            if name in self.parameters and key != TRAINED:
                self.room(name, key, dtype)
                found[full_name] = self.kept[name][key]
        return found
