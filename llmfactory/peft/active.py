"""Which adapters of a model take part in its forward pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import nn

from llmfactory.core.errors import UserError
from llmfactory.peft.part import Adapter, adapters

CRITIC = "critic."
"""Beginning of the names of a critic, which `objective/actor_critic.py` trains beside a model."""


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Within, the model computes what its base does.

    Raises:
        ValueError: the base itself has changed (`base_stays`).
    """
    if not base_stays(model):
        raise ValueError("weights of the base have changed, so that switching adapters off does not give it back")
    before = [(adapter, adapter.active) for _, adapter in adapters(model)]
    try:
        for adapter, _ in before:
            adapter.active = False
        yield
    finally:
        for adapter, active in before:
            adapter.active = active


def choose(model: nn.Module, names: Collection[str]) -> None:
    """Let the adapters with these names take part, and no others; none: the model computes what its base does."""
    found = {adapter.name for _, adapter in adapters(model)}
    if missing := sorted(set(names) - found):
        there = f"there are {', '.join(sorted(found))}" if found else "the model has none"
        raise UserError(f"there is no adapter called {' or '.join(missing)}: {there}")
    for _, adapter in adapters(model):
        adapter.active = adapter.name in names


def base_stays(model: nn.Module) -> bool:
    """Whether everything of the model that is trained stands in adapters, so that without them it is what it started from; a critic
    beside it does not count."""
    found = [adapter for _, adapter in adapters(model)]
    if any(adapter.takes_from_base for adapter in found):
        return False
    own = {id(parameter) for adapter in found for parameter in adapter.parameters()}
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad and not name.startswith(CRITIC)}
    return bool(own) and all(id(one) in own for one in trained.values())


def has_adapters(model: nn.Module) -> bool:
    return any(isinstance(module, Adapter) for module in model.modules())
