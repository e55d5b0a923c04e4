"""Catalogue of objectives that learn from answers that the model itself has written and others have graded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import above, at_least, between
from llmfactory.objective.base_spec import ObjectiveSpec

if TYPE_CHECKING:
    from llmfactory.objective.objective import Objective


class Baseline(Enum):
    """What the reward of an answer is compared with."""

    mean_std = "the mean of its group, in standard deviations of the group (GRPO)"
    mean = "the mean of its group (Dr. GRPO)"
    leave_one_out = "the mean of the others in its group (RLOO)"


class Aggregation(Enum):
    """How the losses of tokens become one."""

    token = "the mean over all tokens of the step: long answers weigh more (DAPO)"
    sequence = "the mean over answers of the mean over an answer's tokens (GRPO)"
    constant = "the sum over tokens, divided by the number of answers and by the most tokens allowed (Dr. GRPO)"
    sum = "the mean over answers of the sum over an answer's tokens (RLOO)"


@dataclass(kw_only=True, slots=True)
class PolicySpec(ObjectiveSpec):
    """Base of the objectives of policies."""

    graphs: ClassVar[tuple[str, ...]] = ("decoder", "recurrent")
    kinds: ClassVar[tuple[str, ...]] = ("prompt",)
    temperature: float = 1.0
    """Answers are drawn from softmax(logits / temperature), and this is the policy that learns."""
    clip_low: float = 0.2
    """A token whose probability has fallen below 1 - clip_low of what it was is not made less likely further."""
    clip_high: float | None = None
    """A token whose probability has risen above 1 + clip_high of what it was is not made likelier further; None: as `clip_low`."""
    entropy_coef: float = 0.0
    """Factor of the policy's mean entropy, in nats, which is added to what is maximized."""
    kl_coef: float = 0.0
    """Factor of the penalty for diverging from the model that the run began with; 0: no such reference is kept."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "temperature", repair=1.0)
        yield from above(self, 0.0, "clip_low", repair=0.2)
        yield from above(self, 0.0, "clip_high", repair=0.2)
        yield from between(self, 0.0, 1.0, "clip_low")
        yield from at_least(self, 0.0, "kl_coef")


@dataclass(kw_only=True, slots=True)
class Policy(PolicySpec):
    """Make answers likelier that were better than others to the same prompt: GRPO, RLOO, Dr. GRPO, DAPO; the penalty is in the loss."""

    aggregation: Aggregation = Aggregation.sequence
    """How the losses of tokens become one."""

    def build(self) -> Objective:
        from llmfactory.objective.policy import PolicyObjective

        return PolicyObjective(self)


@dataclass(kw_only=True, slots=True)
class ActorCritic(PolicySpec):
    """A policy, and beside it a critic that learns what to expect (PPO, Schulman et al. 2017); the penalty is in the rewards."""

    value_coef: float = 0.1
    """Factor of the critic's loss."""
    value_clip: float | None = 0.2
    """A value is not moved further than this from what it was in the rollout; None: any distance."""

    def problems(self) -> Iterator[Problem]:
        yield from PolicySpec.problems(self)
        yield from above(self, 0.0, "value_coef", repair=0.1)
        yield from above(self, 0.0, "value_clip", repair=0.2)

    def build(self) -> Objective:
        from llmfactory.objective.actor_critic import ActorCriticObjective

        return ActorCriticObjective(self)
