"""Parameter groups: what weight decay applies to.

Decay pulls matrices towards zero; norm gains and biases are left alone, as the parts that own them declare.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn


def groups(
    parameters: Iterable[tuple[str, nn.Parameter]], decays: Mapping[str, bool], weight_decay: float
) -> list[dict[str, Any]]:
    """Two groups, decayed and not (an empty one is left out), of the named parameters that require gradients.

    `decays` says for each name whether decay applies; a name without an entry is a `KeyError`, never a guess.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in parameters:
        if parameter.requires_grad:
            (decayed if decays[name] else kept).append(parameter)
    found = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in found if group["params"]]
