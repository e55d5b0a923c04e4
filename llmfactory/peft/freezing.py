"""A model of which a small part is trained: what is frozen, what was added, and what a run's checkpoints leave out."""

from __future__ import annotations

from torch import nn

from llmfactory.model.skeleton import Skeleton
from llmfactory.peft.base_spec import AdapterSpec
from llmfactory.peft.targets import chosen_parameters


def applied(spec: AdapterSpec, model: Skeleton, name: str) -> None:
    """`PeftSpec.apply` of a method: all frozen, then what it adds and thaws."""
    before = _tensors(model)
    model.requires_grad_(False)
    spec.adapt(model, name)
    parameters = dict(model.named_parameters())
    for own in chosen_parameters(model, spec.train):
        parameters[own].requires_grad_(True)
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    model.added |= _tensors(model) - before
    model.borrowed |= before - trained


def _tensors(model: nn.Module) -> frozenset[str]:
    """Names of all that checkpoints hold: parameters and persistent buffers."""
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)} - dict(model.named_parameters()).keys()
    return frozenset(model.state_dict().keys() - aliases)
