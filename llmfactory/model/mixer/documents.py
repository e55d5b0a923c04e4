"""Where documents begin in the rows of a batch: what every recurrence asks before it carries a state from token to token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmfactory.core.context import Context


@dataclass(frozen=True, slots=True)
class Documents:
    """Of the new tokens [B, T]."""

    real_BT: Tensor
    """Bool: the token is no padding."""
    starts_BT: Tensor
    """Bool: the first token of a document; the state before it does not count."""
    last_B: Tensor
    """Segment of the row's last token that is no padding, 0 where there was none yet: what the next call goes on from."""


def documents(tokens_BT: Tensor, context: Context, carried_B: Tensor | None = None) -> Documents:
    """`carried_B`: `last_B` of the call before; None: nothing came before. Of `tokens_BT` only shape and device matter."""
    B, T = tokens_BT.shape[:2]
    ones_BT = torch.ones(B, T, dtype=torch.int64, device=tokens_BT.device)
    segments_BT = ones_BT if context.segments is None else context.segments
    real_BT = segments_BT > 0
    # Column (from 1) of the last token up to here that is no padding; 0 is what came before this call.
    column_BT = (ones_BT.cumsum(1) * real_BT).cummax(1).values
    first_B1 = ones_BT[:, :1].new_zeros(B, 1) if carried_B is None else carried_B[:, None]
    known_BT = torch.cat([first_B1, segments_BT], 1)
    before_BT = known_BT.gather(1, torch.cat([torch.zeros_like(first_B1), column_BT[:, :-1]], 1))
    return Documents(real_BT, real_BT & (segments_BT != before_BT), known_BT.gather(1, column_BT[:, -1:])[:, 0])
