"""One vector for each document of a row: of its first token, of its last, or the mean over its tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.model.head.spec import Pooling


def pooled(hidden_BTD: Tensor, segments_BT: Tensor | None, documents: int, pooling: Pooling) -> Tensor:
    """[B, T, D] -> [B, K, D] for the documents 1 ... K of `segments_BT`, zeros for one that a row does not have.

    Without segments a row is one document. Means of half-precision vectors are taken in float32.
    """
    if segments_BT is None:
        segments_BT = torch.ones(hidden_BTD.shape[:2], dtype=torch.long, device=hidden_BTD.device)
    numbers_K = torch.arange(1, documents + 1, device=segments_BT.device)
    member_BKT = segments_BT[:, None, :] == numbers_K[None, :, None]
    if pooling is Pooling.mean:
        wide = torch.promote_types(hidden_BTD.dtype, torch.float32)
        share_BKT = member_BKT.to(wide) / member_BKT.sum(-1, keepdim=True).clamp_min(1)
        return (share_BKT @ hidden_BTD.to(wide)).to(hidden_BTD.dtype)
    if pooling is Pooling.first:
        place_BK = member_BKT.long().argmax(-1)
    else:
        place_BK = member_BKT.shape[-1] - 1 - member_BKT.flip(-1).long().argmax(-1)
    chosen_BKD = hidden_BTD.gather(1, place_BK[..., None].expand(-1, -1, hidden_BTD.shape[-1]))
    return chosen_BKD.masked_fill(~member_BKT.any(-1, keepdim=True), 0.0)
