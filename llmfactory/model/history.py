"""The last few tokens of a document, at each of its tokens: what n-gram models predict from."""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.core.context import Context
from llmfactory.model.mixer.documents import Line, documents

SLOT = "history"
"""Name of the decoding state."""


def history(tokens_BT: Tensor, context: Context, size: int, nothing: int) -> Tensor:
    """[B, T, size]: each token's last `size` tokens, itself the last; `nothing` stands where the document (or what is known of
    it) has not begun. Padding gets something."""
    before = None if context.state is None else context.state.read(SLOT)
    found = documents(tokens_BT, context, None if before is None else before[-1])
    line = Line(found.starts_BT.cumsum(1).where(found.real_BT, -1), None if before is None else before[1], size - 1)
    x_BS1 = line.join(None if before is None else before[0], tokens_BT[..., None])
    columns = [x_BS1]
    for back in range(1, size):
        older_BS1 = x_BS1[:, : x_BS1.shape[1] - back].where(line.follows(back)[..., None], nothing)
        columns.insert(0, torch.cat([torch.full_like(x_BS1[:, :back], nothing), older_BS1], 1))
    if context.state is not None:
        context.state.write(SLOT, (x_BS1[:, tokens_BT.shape[1] :], line.left(), found.last_B))
    return line.new(torch.cat(columns, 2))
