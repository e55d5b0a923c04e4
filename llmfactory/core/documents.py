"""The documents that rows consist of, as pieces laid end to end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Documents:
    """Pieces of the rows, one row behind the other, padding among them."""

    lengths: list[int]
    """Tokens of each; together B T."""
    causal: bool
    """Whether a token sees only those of its document that stand before it, and itself."""


def documents_of(segments_BT: Tensor, causal: bool) -> Documents | None:
    """Of the documents [B, T] of tokens, 0 is padding; None where the tokens of a document do not stand together."""
    import torch

    starts_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    starts_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    row_N, column_N = starts_BT.nonzero(as_tuple=True)
    names_N2 = torch.stack((row_N, segments_BT[row_N, column_N]), 1)
    if len(torch.unique(names_N2, dim=0)) < len(names_N2):
        return None
    start_N = row_N * segments_BT.shape[1] + column_N
    return Documents(start_N.diff(append=start_N.new_tensor([segments_BT.numel()])).tolist(), causal)
