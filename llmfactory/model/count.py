"""How large a model is and how much a training step computes. Works on the meta device, so that any size can be asked."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn

from llmfactory.model.packed import packed
from llmfactory.model.part import Part
from llmfactory.model.skeleton import Counted, Skeleton
from llmfactory.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table of parts."""

    part: str
    """Where it stands; `*` for the number of a block."""
    kind: str
    """Its class."""
    copies: int
    """How many parts the line sums up."""
    parameters: int
    """Their parameters together; a tied parameter counts where it is owned."""


def parameters(model: nn.Module) -> int:
    """Number of parameters, a tied one once, without those of a frozen model beside it; of a model that counts, how many counts it
    keeps. A matrix in few bits counts as the numbers that it stands for."""
    if isinstance(model, Counted):
        return model.size
    beside = model.added & model.borrowed if isinstance(model, Skeleton) else ()
    whole = sum(part.shape.numel() for part in packed(model).values())
    return whole + sum(parameter.numel() for name, parameter in model.named_parameters() if name not in beside)


def by_part(model: nn.Module) -> list[Row]:
    """A row for each kind of part that owns parameters, in forward order; equal parts of all blocks in one row."""
    rows: dict[tuple[str, str], Row] = {}
    for name, module in model.named_modules():
        if not isinstance(module, Part):
            continue
        own = sum(module.get_parameter(relative).numel() for relative in module.declare())
        if own:
            key = (re.sub(r"\b\d+\b", "*", name), type(module).__name__)
            before = rows.get(key, Row(*key, 0, 0))
            rows[key] = Row(*key, before.copies + 1, before.parameters + own)
    return list(rows.values())


def train_flops_per_token(spec: ModelSpec, seq_len: int, head_share: float = 1.0) -> float:
    """`Skeleton.train_flops_per_token` of the model that a spec describes. `head_share`: of the tokens, those that its head is
    asked about."""
    with torch.device("meta"):
        model = spec.build()
        return model.train_flops_per_token(seq_len) - 3 * 2 * (1 - head_share) * model.head.visited()
