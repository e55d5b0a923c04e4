"""A model of which a small part is trained: what is frozen, what was added, and what a run's checkpoints leave out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from llmfactory.model.skeleton import Skeleton
from llmfactory.peft.base_spec import AdapterSpec
from llmfactory.peft.targets import chosen_parameters


def applied(spec: AdapterSpec, model: Skeleton, name: str) -> None:
    """`PeftSpec.apply` of a method: all frozen, then what it adds and thaws."""
    before = _tensors(model)
    model.requires_grad_(False)
    spec.adapt(model, name)
    model.added |= _tensors(model) - before
    model.borrowed |= before - {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    thaw(model, spec.train or [])


def thaw(model: Skeleton, patterns: Sequence[str]) -> None:
    """Let the model's own parameters that patterns mean be trained whole."""
    parameters = dict(model.named_parameters())
    names = chosen_parameters(model, patterns)
    for name in names:
        parameters[name].requires_grad_(True)
    model.borrowed -= set(names)


def _tensors(model: nn.Module) -> frozenset[str]:
    """Names of all that checkpoints hold: parameters and persistent buffers."""
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)} - dict(model.named_parameters()).keys()
    return frozenset(model.state_dict().keys() - aliases)
