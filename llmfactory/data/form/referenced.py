"""Rows of answers with what a reference says of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.pack.rows import Int64, Rows
from llmfactory.data.pack.wrapped import WrappedRows

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class ReferencedRows(WrappedRows):
    """`reference_logps` [B, K] beside the rows' own fields, once `logps_RK` is known: a line for each row."""

    def __init__(self, rows: Rows) -> None:
        WrappedRows.__init__(self, rows)
        self.logps_RK: NDArray[np.float64] | None = None

    def added(self, own: Batch, indices: Int64) -> Batch:
        import torch

        if self.logps_RK is None:
            raise RuntimeError("the reference has not been asked yet")
        return own | {"reference_logps": torch.from_numpy(self.logps_RK[np.asarray(indices)])}
