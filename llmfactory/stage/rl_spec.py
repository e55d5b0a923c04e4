"""Catalogue of stages that learn from rewards: the model answers prompts, graders judge the answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from llmfactory.core.errors import Problem
from llmfactory.core.spec import above, at_least, between
from llmfactory.objective.policy_spec import Baseline
from llmfactory.stage.base_spec import TrainingSpec
from llmfactory.stage.grader.spec import GraderSpec


@dataclass(kw_only=True, slots=True)
class RlSpec(TrainingSpec):
    """Base of the stages that learn from rewards."""

    graders: dict[str, GraderSpec] = field(default_factory=dict)
    """Who judges answers, by name: 'stage/grader=[exact_match,length]'. The reward is the weighted sum of their grades."""
    max_tokens: int = 128
    """Tokens of an answer at most."""
    answers: int | None = None
    """Answers of an iteration: they are written by the same policy, and learned from in steps of trainer.batch_size. None:
    trainer.batch_size, one step."""
    epochs: int = 1
    """How often each answer is learned from."""
    stop_kl: float | None = None
    """The steps of an iteration end early once the policy has moved so far from the one that wrote the answers, in nats per token;
    None: never."""
    max_kl: float | None = 10.0
    """The run ends where answers diverge further than this from the reference, in nats per token; None: it goes on."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "max_tokens", "answers", "epochs")
        yield from above(self, 0.0, "stop_kl", repair=0.05)
        yield from above(self, 0.0, "max_kl", repair=10.0)

    def written(self, batch_size: int) -> int:
        """Answers of an iteration."""
        return self.answers or batch_size

    def steps(self, batch_size: int) -> int:
        """Steps that an iteration's answers are learned from in, at most (`stop_kl`)."""
        return self.epochs * self.written(batch_size) // batch_size


class Unended(Enum):
    """What is learned from answers that were cut off at max_tokens."""

    all = "as much as from others"
    none = "nothing (DAPO's overlong filtering)"


@dataclass(kw_only=True, slots=True)
class Grpo(RlSpec):
    """Learn from groups of answers to the same prompt, each compared with the others (Shao et al. 2024); no critic is needed."""

    group: int = 8
    """Answers to a prompt, G."""
    baseline: Baseline = Baseline.mean_std
    """What the reward of an answer is compared with."""
    skip_equal: bool = False
    """Leave out groups whose rewards are all equal, which teach nothing, and ask other prompts in their place (dynamic sampling)."""
    unended: Unended = Unended.all
    """What is learned from answers that were cut off at max_tokens."""
    long_interval: int | None = None
    """The reward falls by up to 1 over that many last tokens before max_tokens (DAPO's soft punishment); None: it does not."""

    def problems(self) -> Iterator[Problem]:
        yield from RlSpec.problems(self)
        yield from at_least(self, 2, "group")
        yield from at_least(self, 1, "long_interval")
        if self.long_interval is not None and self.long_interval > self.max_tokens:
            reason = f"answers have at most max_tokens={self.max_tokens}"
            yield Problem("long_interval", self.long_interval, reason, f"long_interval={max(1, self.max_tokens)}")
        if self.answers is not None and self.group >= 2 and self.answers % self.group:
            repair = f"answers={self.group * max(1, self.answers // self.group)}"
            yield Problem("answers", self.answers, f"they come in groups of {self.group}", repair)


@dataclass(kw_only=True, slots=True)
class Ppo(RlSpec):
    """Learn from rewards with a critic that tells which token was better than expected (Schulman et al. 2017; Ouyang et al. 2022)."""

    gamma: float = 1.0
    """Discount of rewards that come a token later."""
    lam: float = 0.95
    """Lambda of generalized advantages: 0 trusts the critic, 1 the rewards."""
    kl_target: float | None = None
    """Divergence from the reference, in nats per token, that stage.objective.kl_coef is steered to after each iteration (Ziegler et al.
    2019); None: it stays."""
    clip_reward: float | None = None
    """Rewards of answers are cut off at plus and minus this; None: they are taken as they are."""
    whiten_rewards: bool = False
    """Divide rewards by their standard deviation over the rollout."""
    whiten_advantages: bool = True
    """Give the advantages of a rollout mean 0 and variance 1."""
    critic: str | None = None
    """Run folder of stage=reward that the critic starts from; None: it starts from the policy."""

    def problems(self) -> Iterator[Problem]:
        yield from RlSpec.problems(self)
        yield from between(self, 0.0, 1.0, "gamma", "lam")
        yield from above(self, 0.0, "kl_target", repair=0.05)
        yield from above(self, 0.0, "clip_reward", repair=5.0)
