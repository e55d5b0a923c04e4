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


class Line:
    """The new tokens behind the last `past` of the call before, with padding moved to the front, so that the token one place
    back is the one that a token follows. For parts that look back a fixed number of tokens.

    `numbers_BT`: number of each token's document, 0 for the one that the call before was in, -1 for padding; `before_BK`: those
    of the tokens that were left, None: nothing came before. S = K + T.
    """

    def __init__(self, numbers_BT: Tensor, before_BK: Tensor | None, past: int) -> None:
        if before_BK is None:
            before_BK = numbers_BT.new_full((len(numbers_BT), past), -1)
        self.past, self.numbers_BS = past, torch.cat([before_BK, numbers_BT], 1)
        self._order_BS: Tensor | None = None
        if not bool((numbers_BT >= 0).all()):
            self._order_BS = (self.numbers_BS >= 0).long().argsort(stable=True, dim=1)
            self.numbers_BS = self.numbers_BS.gather(1, self._order_BS)

    def join(self, before_BKD: Tensor | None, x_BTD: Tensor) -> Tensor:
        """What the tokens hold, [B, S, D], in the order of the line."""
        if before_BKD is None:
            before_BKD = x_BTD.new_zeros(len(x_BTD), self.past, x_BTD.shape[-1])
        x_BSD = torch.cat([before_BKD, x_BTD], 1)
        return x_BSD if self._order_BS is None else _take(x_BSD, self._order_BS)

    def follows(self, back: int) -> Tensor:
        """Bool [B, S - back]: whether each token but the first has one of its own document so many places back."""
        return self.numbers_BS[:, back:] == self.numbers_BS[:, : self.numbers_BS.shape[1] - back]

    def new(self, y_BSD: Tensor) -> Tensor:
        """Of the new tokens alone, [B, T, D], where they stood."""
        return (y_BSD if self._order_BS is None else _take(y_BSD, self._order_BS.argsort(1)))[:, self.past :]

    def left(self) -> Tensor:
        """Numbers [B, K] of the last tokens, as the next call takes them; what they hold stands at the end of the line."""
        kept_BK = self.numbers_BS[:, self.numbers_BS.shape[1] - self.past :]
        return torch.where(kept_BK == self.numbers_BS[:, -1:], 0, -1).where(kept_BK >= 0, -1)


def _take(x_BSD: Tensor, order_BS: Tensor) -> Tensor:
    return x_BSD.gather(1, order_BS[..., None].expand(-1, -1, x_BSD.shape[-1]))
