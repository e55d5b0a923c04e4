"""A model with more tokens than it was trained with: rows of its tables kept, and new ones begun.

A table is a parameter whose rows are tokens (`Layout.vocab`): embedding, head, the head's bias. A tied head has no table of its
own, so what is done to the embedding holds for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from llmfactory.core.beginning import Beginning
from llmfactory.core.errors import UserError
from llmfactory.core.sharding import Layout
from llmfactory.model.declarations import declarations
from llmfactory.model.initialize import initialize
from llmfactory.model.skeleton import Skeleton


@torch.no_grad()
def resize(old: Skeleton, new: Skeleton, pieces: Mapping[int, Sequence[int]], kept: int, beginning: Beginning, seed: int) -> None:
    """Fill `new`, which differs from `old` in the number of tokens only.

    `pieces`: of each new token its old ones, all below `kept`; rows below `kept` are copied. Rows that no token uses are random.
    """
    initialize(new, seed)
    declared, before = declarations(new), dict(old.named_parameters())
    for name, parameter in new.named_parameters():
        source = before[name]
        if declared[name].layout is Layout.vocab:
            _fill_rows(source, parameter, pieces, kept, beginning)
        elif source.shape == parameter.shape:
            parameter.copy_(source)
        else:
            raise UserError(
                f"{name} is {list(source.shape)}, and {list(parameter.shape)} with more tokens: no rows that could be added to"
            )
    for name, buffer in new.named_buffers():
        found = old.get_buffer(name)
        if found.shape != buffer.shape:
            raise UserError(
                f"{name} is {list(found.shape)}, and {list(buffer.shape)} with more tokens: it belongs to a vocabulary"
            )
        buffer.copy_(found)


def _fill_rows(
    source_VD: Tensor, target_VD: Tensor, pieces: Mapping[int, Sequence[int]], kept: int, beginning: Beginning
) -> None:
    target_VD[:kept] = source_VD[:kept]
    if beginning is Beginning.random:
        return
    whole = source_VD[:kept].float().mean(0)
    for number, old in pieces.items():
        by_pieces = beginning is Beginning.mean_of_pieces and len(old)
        target_VD[number] = source_VD[list(old)].float().mean(0) if by_pieces else whole
