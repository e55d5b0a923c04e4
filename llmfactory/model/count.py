"""How large a model is and how much a training step computes. Works on the meta device, so that any size can be asked."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn

from llmfactory.model.part import Part
from llmfactory.model.spec import DecoderOnly


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
    """Number of parameters, a tied one once."""
    return sum(parameter.numel() for parameter in model.parameters())


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


def train_flops_per_token(spec: DecoderOnly, seq_len: int) -> float:
    """Floating point operations of forward and backward for one token in rows of `seq_len`; a multiply-add counts two.

    Matrix products only, the convention of model FLOPs utilization (Chowdhery et al. 2022, appendix B): the head's product
    counts, tied or not, table lookups do not; attention counts the half that a causal mask leaves; the backward is twice
    the forward; recomputation is not counted.
    """
    with torch.device("meta"):
        model = spec.build()
    matrices = sum(weight.numel() for weight in model.blocks.parameters() if weight.dim() >= 2) + model.head.weight.numel()
    width = spec.attention.n_heads * spec.attention.head_width(spec.dim)
    scores_and_values = spec.n_layers * 2 * width * seq_len / 2
    return 3 * 2 * (matrices + scores_and_values)
