"""Policies that learn from graded answers of their own (Shao et al. 2024, equation 3; Yu et al. 2025, equation 8):

    loss = sum_t w_t [clipped policy loss_t + kl_coef k3(p || reference)_t] / n  -  entropy_coef mean_t H_t

over the tokens t of answers. Weights and n are functions of the batch alone (`Aggregation`), so that a step is the same however its
answers are cut up into micro-batches.

| key | shape | meaning |
|---|---|---|
| `advantages` | [B, T] float | how much better than expected |
| `weights` | [B, T] float | w, see `token_weights` |
| `old_logps` | [B, T] float | log-probabilities when the answer was written; not there: those of this very forward |
| `reference_token_logps` | [B, T] float | log-probabilities under the reference, where there is a penalty in the loss |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.objective.causal import CausalObjective
from llmfactory.objective.objective import Objective, Outputs, Terms
from llmfactory.objective.policy_spec import Aggregation, Policy, PolicySpec
from llmfactory.objective.reference import begin_reference, equip_reference
from llmfactory.objective.spec import Causal
from llmfactory.objective.surrogate import clipped_policy_loss, k3

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.model.skeleton import Skeleton

FIELDS = ("weights", "advantages", "old_logps", "reference_token_logps")


def token_weights(aggregation: Aggregation, kept_NT: Tensor, most: int) -> Tensor:
    """[N, T] float64, the weight of each token of N answers of at most so many tokens."""
    kept = kept_NT.double()
    if aggregation is Aggregation.sequence:
        return kept / kept.sum(1, keepdim=True).clamp_min(1)
    return kept / most if aggregation is Aggregation.constant else kept


class PolicyObjective(Objective):
    unit = "policy loss"
    continues = True

    def __init__(self, spec: Policy) -> None:
        self.spec: PolicySpec = spec
        self.by_token = spec.aggregation is Aggregation.token
        self.terms = ("policy", *(["penalty"] if spec.kl_coef else []), *(["bonus"] if spec.entropy_coef else []))
        self.watched = ("entropy", "clipped", "moved", *(["kl"] if spec.kl_coef else []))

    def plain(self) -> Objective:
        """As a measure of text it is the language model that it is."""
        return CausalObjective(Causal())

    def equip(self, model: Skeleton) -> None:
        if self.spec.kl_coef:
            equip_reference(model)

    def begin(self, model: Skeleton) -> None:
        if self.spec.kl_coef:
            begin_reference(model)

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        spec, kept = self.spec, batch["labels"] != IGNORE
        logp, entropy = outputs.head.log_probs_and_entropy(outputs.hidden, batch["labels"], spec.temperature)
        logp, entropy = logp[kept], entropy[kept]
        weights, advantages, old, reference = (
            batch[name][kept].to(logp.dtype) if name in batch else logp.detach() for name in FIELDS
        )
        high = spec.clip_low if spec.clip_high is None else spec.clip_high
        losses, held = clipped_policy_loss(logp, old, advantages, spec.clip_low, high)
        sums: dict[str, Any] = {"policy": weights @ losses}
        with torch.no_grad():
            sums |= {"entropy": entropy.sum(), "clipped": held.sum(), "moved": k3(old, logp).sum()}
        if "penalty" in self.terms:
            gap = k3(logp, reference)
            sums["penalty"] = spec.kl_coef * (weights @ gap)
            sums["kl"] = gap.detach().sum()
        if "bonus" in self.terms:
            sums["bonus"] = -spec.entropy_coef * entropy.sum()
        counts = self.denominators(batch)
        return {name: (total, counts[name]) for name, total in sums.items()}

    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        kept = batch["labels"] != IGNORE
        tokens = kept.sum()
        shares = tokens if self.by_token else kept.any(1).sum()
        counts = dict.fromkeys(self.terms, shares) | dict.fromkeys(self.watched, tokens)
        return counts | {"bonus": tokens} if "bonus" in self.terms else counts
