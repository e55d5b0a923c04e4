"""Rewards of the answers of a row: what objectives share that compare or score whole answers.

A record is a row, its answers are the documents 1..K of it (`data/form/record_rows.py`), or branches 1..K behind a prompt that they
share (`data/form/shared_prompt.py`). The reward of an answer is the head's number of the document's vector. An answer is there if something of it is learned: a row of padding has none, nor has a place for an answer
that a record lacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.objective.objective import Objective, Outputs

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class RewardObjective(Objective):
    terms = ("loss",)

    def rewards(self, outputs: Outputs, batch: Batch, answers: int) -> Tensor:
        """[B, K], in float32 at least."""
        pooled_BKD = outputs.head.pool(outputs.hidden, numbers(batch), answers)
        rewards_BK = outputs.head(pooled_BKD)[..., 0]
        return rewards_BK.to(torch.promote_types(rewards_BK.dtype, torch.float32))


def numbers(batch: Batch) -> Tensor:
    """[B, T], the answer that each token belongs to; 0: none, or all."""
    return batch.get("branches", batch["segments"])


def present(batch: Batch, answers: int) -> Tensor:
    """[B, K], whether a row has an answer there."""
    learned_BT = batch["labels"] != IGNORE
    numbers_K = torch.arange(1, answers + 1, device=learned_BT.device)
    return (learned_BT[:, None, :] & (numbers(batch)[:, None, :] == numbers_K[None, :, None])).any(-1)


def total(values: Tensor, where: Tensor) -> Tensor:
    """The sum of the values at some places."""
    return (values * where).sum()


def rightly_ordered(difference: Tensor) -> Tensor:
    """1 where the better answer has the higher reward, 1/2 where both have the same."""
    return (difference > 0).to(difference.dtype) + 0.5 * (difference == 0).to(difference.dtype)
