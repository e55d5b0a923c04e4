"""The mask of rows in which several texts share their beginning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmfactory.core.mask import Mask

if TYPE_CHECKING:
    from torch import Tensor


class BranchMask(Mask):
    """Causal within a document that has several ends: each branch sees what comes before all of them, and itself.

    `branches_BT` is 0 for what they have in common, which stands at the document's beginning, else the number of a branch.
    `positions_BT` are those in the text that a branch is the end of, and what a window counts by. `columns_T`: places in the row (None:
    all of them). Those of the keys: None where S = T.
    """

    def __init__(
        self,
        segments_BT: Tensor,
        branches_BT: Tensor,
        positions_BT: Tensor,
        columns_T: Tensor | None = None,
        keys: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    ) -> None:
        import torch

        super().__init__()
        if columns_T is None:
            columns_T = torch.arange(segments_BT.shape[1], device=segments_BT.device)
        self.queries = segments_BT, branches_BT, positions_BT, columns_T
        self.keys = self.queries if keys is None else keys
        self.looks_back = keys is None

    def seen(self) -> Tensor:
        (segments_BT, branches_BT, _, columns_T), (segments_BS, branches_BS, _, columns_S) = self.queries, self.keys
        same = segments_BT[:, :, None] == segments_BS[:, None, :]
        own = (branches_BS[:, None, :] == 0) | (branches_BT[:, :, None] == branches_BS[:, None, :])
        return (same & own & (columns_T[:, None] >= columns_S[None, :]))[:, None]

    def order(self) -> tuple[Tensor, Tensor]:
        return self.queries[2], self.keys[2]

    def tile(self, queries: slice, keys: slice) -> BranchMask:
        segments_BT, branches_BT, positions_BT, columns_T = self.queries
        segments_BS, branches_BS, positions_BS, columns_S = self.keys
        there = segments_BS[:, keys], branches_BS[:, keys], positions_BS[:, keys], columns_S[keys]
        here = segments_BT[:, queries], branches_BT[:, queries], positions_BT[:, queries]
        return BranchMask(*here, columns_T=columns_T[queries], keys=there)

    def reach(self, queries: slice, window: int | None = None) -> slice:
        """A window counts positions, and what branches have in common is near them whatever stands in between."""
        return slice(0, queries.stop)
