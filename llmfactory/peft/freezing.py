"""A model of which a small part is trained: what is frozen, what was added, and what a run's checkpoints leave out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from llmfactory.core.errors import UserError
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


def thaw_biases(model: Skeleton) -> None:
    """Let all biases be trained, those of norms too."""
    found = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    if not found:
        raise UserError("this model has no biases, so that peft=bitfit finds nothing to train: use peft=lora")
    for parameter in found:
        parameter.requires_grad_(True)


def thaw_last_layers(model: Skeleton, count: int) -> None:
    """Let the last layers in forward order be trained; layers that share their weights count once."""
    layers = list(dict.fromkeys(step.modules[0] for step in model.steps() if step.layer))
    if count > len(layers):
        raise UserError(f"peft.last_layers={count}, but the model has {len(layers)} layers")
    for layer in layers[len(layers) - count :]:
        layer.requires_grad_(True)


def _tensors(model: nn.Module) -> frozenset[str]:
    """Names of all that checkpoints hold: parameters and persistent buffers."""
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)} - dict(model.named_parameters()).keys()
    return frozenset(model.state_dict().keys() - aliases)
