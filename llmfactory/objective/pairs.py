"""Pairs of a chosen and a rejected answer: what objectives share that say for each pair how bad it is.

With the log-probability log p of each answer and, where there is a reference, its log-probability log q there,

    loss = sum over pairs of f(log p_c - log q_c, log p_r - log q_r) / number of pairs  (+ w * -sum log p_c / tokens of the chosen).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from llmfactory.core.batch import IGNORE
from llmfactory.objective.answers import AnswersObjective, log_probs, share, tokens
from llmfactory.objective.objective import Outputs, Terms
from llmfactory.objective.preference_spec import Reference

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch

WATCHED = ("reward_chosen", "reward_rejected", "margin", "accuracy", "logp_chosen", "logp_rejected")


@dataclass(frozen=True, slots=True)
class Side:
    """One answer of each pair, [B] each."""

    logps: Tensor
    ratios: Tensor
    """log p / q; without a reference, log p."""
    tokens: Tensor

    @property
    def mean(self) -> Tensor:
        """Log-probability per token."""
        return self.logps / self.tokens.clamp(min=1)


class PairObjective(AnswersObjective):
    """One term, the mean over pairs; with `nll`, the chosen answers' negative log-likelihood per token is a second, of that weight."""

    unit = "nats per pair"
    watched = WATCHED

    def __init__(self, reference: Reference, nll: float = 0.0) -> None:
        AnswersObjective.__init__(self, reference)
        self.nll = nll
        self.terms = ("pairs", "nll") if nll else ("loss",)
        self.unit = f"{self.unit}, and per token" if nll else self.unit

    @abstractmethod
    def pair_loss(self, chosen: Side, rejected: Side) -> Tensor:
        """[B]."""

    @abstractmethod
    def reward(self, side: Side) -> Tensor:
        """[B], what the loss takes an answer to be worth."""

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        logps_B2 = log_probs(outputs, batch, 2)
        tokens_B2 = tokens(batch, 2, outputs.pieces).to(logps_B2.dtype)
        known_B2 = self.compared_with(outputs, batch)
        ratios_B2 = logps_B2 if known_B2 is None else logps_B2 - known_B2.to(logps_B2.dtype)
        chosen, rejected = (Side(logps_B2[:, k], ratios_B2[:, k], tokens_B2[:, k]) for k in (0, 1))
        part_B = (tokens_B2.sum(1) > 0).to(logps_B2.dtype) * share(outputs)
        sums = {self.terms[0]: (self.pair_loss(chosen, rejected) * part_B).sum()}
        if self.nll:
            sums["nll"] = -self.nll * (chosen.logps * part_B).sum()
        rewards = [self.reward(side).detach() for side in (chosen, rejected)]
        margin = rewards[0] - rewards[1]
        right = (margin > 0).to(margin.dtype) + 0.5 * (margin == 0).to(margin.dtype)
        watched = (*rewards, margin, right, chosen.logps.detach(), rejected.logps.detach())
        sums |= {name: (value * part_B).sum() for name, value in zip(WATCHED, watched, strict=True)}
        counts = self.denominators(batch)
        return {name: (total, counts[name]) for name, total in sums.items()}

    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        kept_BT = batch["labels"] != IGNORE
        pairs = kept_BT.any(1).sum()
        found = {self.terms[0]: pairs}
        if self.nll:
            found["nll"] = (kept_BT & (batch.get("branches", batch["segments"]) == 1)).sum()
        return found | dict.fromkeys(WATCHED, pairs)


def logistic(difference_B: Tensor, smoothing: float) -> Tensor:
    """-log sigmoid, where a share of the pairs is taken to be the wrong way round."""
    right = -F.logsigmoid(difference_B)
    return right if not smoothing else (1 - smoothing) * right - smoothing * F.logsigmoid(-difference_B)
