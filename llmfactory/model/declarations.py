"""Collect what the parts of a model declare: exactly one declaration for each parameter, a tied one once."""

from __future__ import annotations

from torch import nn

from llmfactory.core.sharding import Parameter
from llmfactory.model.part import Part


def declarations(model: nn.Module) -> dict[str, Parameter]:
    """Fully qualified name -> declaration, in the order of `model.named_parameters()`.

    Raises:
        TypeError: a parameter that no part declares, one that is declared twice, or a declaration without parameter; it
            is a mistake in a part, and the message names it.
    """
    names = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    found: dict[str, Parameter] = {}
    owner: dict[int, str] = {}
    for prefix, module in model.named_modules():
        if not isinstance(module, Part):
            continue
        for relative, declared in module.declare().items():
            name = f"{prefix}.{relative}" if prefix else relative
            if name not in names:
                raise TypeError(f"{type(module).__name__} at {prefix!r} declares {relative!r}, but has no such parameter")
            if names[name] in owner:
                raise TypeError(f"parameter {name!r} is declared twice: it is {owner[names[name]]!r}")
            owner[names[name]] = name
            found[name] = declared
    missing = [name for name, identity in names.items() if identity not in owner]
    if missing:
        raise TypeError(f"no part declares the parameters {', '.join(missing)}")
    return {name: found[name] for name in names if name in found}
