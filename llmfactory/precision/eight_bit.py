"""Which linear maps of a model multiply 8-bit numbers, and making them do so.

All that the model calls are meant, but for those that choose or begin and end the model: head, embedding, router, the gate of a shared
expert, and what an adapter adds. What is no linear map of its own (experts' stacks, score biases), and a map whose part works with
the matrix in a way of its own, stay as they are.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import nn

from llmfactory.core.errors import UserError
from llmfactory.kernel.eight_bit_linear import EightBit, Numbers

APART = frozenset({"head", "embedding", "router", "shared_gate", "adapters"})
"""Parts of a name whose maps stay as they are."""


def to_eight_bits(model: nn.Module, numbers: Numbers, skip: Sequence[str]) -> None:
    """Let the linear maps of `model` multiply 8-bit numbers, in place, but for those that a pattern of `skip` means: a glob over the
    whole name or its end, from a dot on. A model that was changed before stays as it is.

    Raises:
        UserError: a pattern that means none, or no map that is meant.
    """
    if any(isinstance(module, EightBit) for module in model.modules()):
        return
    maps = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and APART.isdisjoint(name.split("."))
    }
    skipped: set[str] = set()
    for pattern in skip:
        meant = {name for name in maps if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*.{pattern}")}
        if not meant:
            raise UserError(f"precision.skip: no linear map is called {pattern}; there are {', '.join(maps) or 'none'}")
        skipped |= meant
    chosen = [module for name, module in maps.items() if name not in skipped]
    if not chosen:
        raise UserError(
            "precision: this model has no linear map left that could multiply 8-bit numbers: use precision=bf16_mixed"
        )
    for module in chosen:
        kind = type(module)
        module.__class__ = EightBit if kind is nn.Linear else _beneath(kind)
        module.__dict__["numbers"] = numbers


def _beneath(kind: type[nn.Linear]) -> type[nn.Linear]:
    """A class whose product is that of 8-bit numbers, under what an adapter makes of it."""
    return type(kind.__name__, (kind, EightBit), {})
