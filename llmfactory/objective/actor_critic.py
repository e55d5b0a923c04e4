"""Proximal policy optimization of answers (Schulman et al. 2017, equation 9; Ouyang et al. 2022):

    loss = [sum_t clipped policy loss_t - entropy_coef H_t + value_coef clipped value loss_t] / number of t

over the tokens t of answers. The critic, `model.critic`, is a model like the policy that says a number at each token: how much reward is
still to come behind it. It starts from the policy's weights.

| key | shape | meaning |
|---|---|---|
| `advantages`, `old_logps` | [B, T] float | as in `policy.py` |
| `old_values` | [B, T] float | the critic's values when the answer was written |
| `returns` | [B, T] float | what they should have been |
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.model.head.spec import Scalar
from llmfactory.objective.objective import Outputs, Terms
from llmfactory.objective.policy import PolicyObjective
from llmfactory.objective.policy_spec import ActorCritic, Aggregation, Policy
from llmfactory.objective.reference import copy_weights
from llmfactory.objective.surrogate import clipped_value_loss

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.core.context import Context
    from llmfactory.model.skeleton import Skeleton

CRITIC = "critic"


@dataclass(frozen=True, slots=True)
class Valued(Outputs):
    """Of the policy, and of the critic."""

    values: Tensor
    """[B, T]."""


class ActorCriticObjective(PolicyObjective):
    def __init__(self, spec: ActorCritic) -> None:
        shared = {one.name: getattr(spec, one.name) for one in fields(spec) if one.name not in ("value_coef", "value_clip")}
        super().__init__(Policy(aggregation=Aggregation.token, **shared))
        self.value_coef, self.value_clip = spec.value_coef, spec.value_clip
        self.terms = ("policy", "value", *(["bonus"] if spec.entropy_coef else []))
        self.watched = ("entropy", "clipped", "moved")

    def equip(self, model: Skeleton) -> None:
        super().equip(model)
        critic = replace(model.spec, head=Scalar()).build()  # type: ignore[call-arg]
        model.add_module(CRITIC, critic)
        model.added |= {f"{CRITIC}.{name}" for name in critic.state_dict()}

    def begin(self, model: Skeleton) -> None:
        super().begin(model)
        copy_weights(model, cast("Skeleton", model.critic), new_head=True)

    def outputs(self, model: Skeleton, batch: Batch, context: Context) -> Outputs:
        values_BT = values_of(model, batch, context)
        return Valued(model(batch["tokens"], context), model.head, values_BT)

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        assert isinstance(outputs, Valued)
        terms = super().__call__(outputs, batch)
        kept = batch["labels"] != IGNORE
        values = outputs.values[kept]
        old, target = (batch[name][kept].to(values.dtype) for name in ("old_values", "returns"))
        losses = clipped_value_loss(values, old, target, self.value_clip)
        value: dict[str, Any] = {"value": (self.value_coef * losses.sum(), self.denominators(batch)["value"])}
        return terms | value


def values_of(model: Skeleton, batch: Batch, context: Context) -> Tensor:
    """[B, T], the critic's number at each token, in float32 or better."""
    critic = cast("Skeleton", model.critic)
    values_BT: Tensor = critic.head(critic(batch["tokens"], context))[..., 0]
    return values_BT.to(torch.promote_types(values_BT.dtype, torch.float32))
