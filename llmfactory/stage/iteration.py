"""One iteration of learning from rewards, up to what its steps learn from: answers are written, judged, and told how good they were.

Every process writes, judges and scores its share of the answers; then all have all of them, so that whatever is computed over a
rollout is the same everywhere, and a checkpoint's rollout fits any number of processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.core.errors import UserError
from llmfactory.data.form.record_rows import PromptRows
from llmfactory.data.form.spec import Prompts
from llmfactory.data.form.template.prompt import chat_ids
from llmfactory.data.loader import share
from llmfactory.inference.sampler import Sampling
from llmfactory.objective.advantage import (
    adapted,
    all_equal,
    generalized_advantages,
    group_advantages,
    long_answer_penalty,
    token_rewards,
    whitened,
)
from llmfactory.objective.policy import token_weights
from llmfactory.objective.policy_spec import Aggregation, Policy, PolicySpec
from llmfactory.objective.surrogate import k1
from llmfactory.stage.grader.grader import Answer, Graders
from llmfactory.stage.rl_spec import Grpo, Ppo, RlSpec, Unended
from llmfactory.stage.rollout import Asked, Written, laid_out, score, write

if TYPE_CHECKING:
    from llmfactory.config.spec import Job
    from llmfactory.core.batch import Batch
    from llmfactory.data.form.record_rows import Prompt
    from llmfactory.data.pack.rows import Rows
    from llmfactory.data.tokenizer.tokenizer import Tokenizer
    from llmfactory.model.skeleton import Skeleton
    from llmfactory.parallel.mesh import World

TRIES = 8
"""Rounds of prompts that are put in place of groups whose rewards are all equal; then such groups are taken as they are."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Graded:
    """An answer and what became of it."""

    asked: Asked
    written: Written
    text_prompt: str
    text: str
    reward: float
    grades: dict[str, float | None]


@dataclass(slots=True)
class Iteration:
    """What the steps of an iteration learn from."""

    rows: Batch
    """[N, T] each, on the CPU. Beside what is learned from, `prompts` [N], the number of the prompt that is answered, and `rewards` [N]."""
    drawn: int
    """Prompts that the run has put by now."""
    kl_coef: float
    """Of the next iteration."""
    metrics: dict[str, float]
    seconds: dict[str, float]
    """`rollout` and `score`."""
    failures: dict[str, int] = field(default_factory=dict)
    """Answers without a grade, by grader and reason."""


class Rounds:
    """Makes iterations. `current` gives the whole model as it stands, on every process that asks."""

    def __init__(
        self,
        job: Job,
        rows: Rows,
        tokenizer: Tokenizer,
        world: World,
        forward_context: Callable[[], AbstractContextManager[Any]],
        current: Callable[[], Skeleton],
    ) -> None:
        assert isinstance(job.stage, RlSpec)
        assert isinstance(job.stage.objective, PolicySpec)
        self.job, self.rows, self.tokenizer, self.world = job, rows, tokenizer, world
        self.spec, self.objective = job.stage, job.stage.objective
        self.forward_context, self.current = forward_context, current
        self.graders = Graders.of(job.stage.graders, job, world.device, job.stage.max_tokens)
        self.order = rows.order(job.seed)
        self.answers = job.stage.written(job.trainer.batch_size)
        self.group = job.stage.group if isinstance(job.stage, Grpo) else 1
        self.remembers = job.stage.steps(job.trainer.batch_size) > 1 or isinstance(job.stage, Ppo)
        """Whether steps need to know how likely answers were when they were written: the first step of one sees it itself."""

    def next(self, drawn: int, kl_coef: float) -> Iteration:
        """`drawn`: prompts that the run has put before; `kl_coef`: of PPO's penalty. Called by every process."""
        start = time.perf_counter()
        self.model = self.current()
        graded, counts, judging = self._answers(drawn)
        writing = time.perf_counter() - start - judging
        batch = laid_out([one.asked.tokens for one in graded], [one.written for one in graded], self.tokenizer.end_id)
        batch |= self._scores(batch)
        kept_NT = batch["labels"] != IGNORE
        metrics = self._metrics(graded, counts, kept_NT)
        rewards_N = torch.tensor([one.reward for one in graded], dtype=torch.float64)
        coef = kl_coef
        if isinstance(self.spec, Ppo):
            coef = self._credit_tokens(batch, rewards_N, kept_NT, kl_coef, metrics)
        else:
            self._credit_answers(batch, rewards_N, kept_NT, graded)
        if not batch["advantages"].isfinite().all():
            raise UserError(
                "the advantages of a rollout are no finite numbers: rewards are too large (stage.graders.<name>.weight, "
                f"stage.clip_reward); they lie between {rewards_N.min():g} and {rewards_N.max():g}"
            )
        batch |= {"prompts": torch.tensor([one.asked.number for one in graded]), "rewards": rewards_N}
        seconds = {"rollout": writing, "score": time.perf_counter() - start - writing}
        return Iteration(batch, drawn + counts["prompts"], coef, metrics, seconds, counts["failures"])

    def check(self) -> None:
        """That graders find in the records what they compare answers with."""
        self.graders.check(prompt_at(self.rows, row).record for row in range(len(self.rows)))

    def judge(self, rows: Rows, places: Sequence[int]) -> tuple[list[Graded], dict[str, int]]:
        """An answer to each of these held-out prompts, the same draws every time, and of those without a grade how many and why.
        Called by every process."""
        self.model = self.current()
        prompts = [prompt_at(rows, place) for place in places]
        asked = [Asked(-1 - place, one.tokens, one.messages, one.record) for place, one in zip(places, prompts, strict=True)]
        graded, failures, _ = self.write_and_judge(asked, 1)
        return graded, failures

    def sample(self, text: str) -> str:
        """What the model says to a text, put to it as prompts are; on the processes that count rows, nothing on others."""
        form = getattr(self.job.data, "form", None)
        asks = isinstance(form, Prompts) and form.chat
        messages = [{"role": "user", "content": text}]
        tokens = chat_ids(self.tokenizer, messages) if asks else [*self.tokenizer.usage.begin_ids, *self.tokenizer.encode(text)]
        one = self._written([Asked(-1, tokens[-self.rows.seq_len :], messages, {})], 1)[0] if self.world.counts else None
        return "" if one is None else self.tokenizer.decode(one.tokens[:-1] if one.ended else one.tokens)

    # ---- answers and their rewards

    def ask(self, numbers: Sequence[int]) -> list[Asked]:
        """Prompts by their number in the order of the run."""
        places = self.order(np.asarray(numbers, np.int64)).tolist()
        prompts = [prompt_at(self.rows, place) for place in places]
        return [Asked(number, one.tokens, one.messages, one.record) for number, one in zip(numbers, prompts, strict=True)]

    def _answers(self, drawn: int) -> tuple[list[Graded], dict[str, Any], float]:
        """As many answers as an iteration has, what was counted on the way, and the seconds that judging took."""
        wanted = self.answers // self.group
        skipping = isinstance(self.spec, Grpo) and self.spec.skip_equal
        found: list[list[Graded]] = []
        spare: list[list[Graded]] = []
        counts: dict[str, Any] = {"prompts": 0, "equal": 0, "failures": {}}
        judging = 0.0
        for _ in range(TRIES if skipping else 1):
            first = drawn + counts["prompts"]
            missing = wanted - len(found)
            graded, failures, seconds = self.write_and_judge(self.ask(range(first, first + missing)), self.group)
            judging += seconds
            counts["prompts"] += missing
            for reason, times in failures.items():
                counts["failures"][reason] = counts["failures"].get(reason, 0) + times
            groups = [graded[start : start + self.group] for start in range(0, len(graded), self.group)]
            rewards_PG = torch.tensor([[one.reward for one in group] for group in groups], dtype=torch.float64)
            for group, equal in zip(groups, all_equal(rewards_PG).tolist(), strict=True):
                counts["equal"] += equal and self.group > 1
                (spare if equal and skipping else found).append(group)
            if len(found) == wanted:
                break
        found += spare[: wanted - len(found)]
        return [one for group in found for one in group], counts, judging

    def write_and_judge(self, asked: Sequence[Asked], each: int) -> tuple[list[Graded], dict[str, int], float]:
        """The answers of all processes, in the order of the prompts, and of those without a grade how many and why."""

        def part() -> tuple[list[Graded], dict[str, int], float]:
            low, high = share(0, len(asked), self.world.data_rank, self.world.data_size)
            mine = asked[low:high]
            written = self._written(mine, each)
            start = time.perf_counter()
            graded, failures = self._judged([one for one in mine for _ in range(each)], written)
            return graded, failures, time.perf_counter() - start

        parts = self._together(part)
        failures: dict[str, int] = {}
        for _, found, _ in parts:
            for reason, times in found.items():
                failures[reason] = failures.get(reason, 0) + times
        return [one for graded, _, _ in parts for one in graded], failures, max(seconds for _, _, seconds in parts)

    def _written(self, asked: Sequence[Asked], each: int) -> list[Written]:
        with self.forward_context():
            return write(
                self.model,
                asked,
                each,
                max_tokens=self.spec.max_tokens,
                sampling=Sampling(temperature=self.objective.temperature),
                vocab_size=self.tokenizer.vocab_size,
                stop_ids=self.tokenizer.usage.stop_ids,
                seed=self.job.seed,
            )

    def _judged(self, asked: Sequence[Asked], written: Sequence[Written]) -> tuple[list[Graded], dict[str, int]]:
        answers = []
        for prompt, one in zip(asked, written, strict=True):
            tokens = one.tokens[:-1] if one.ended else one.tokens
            text_prompt = prompt.messages[-1]["content"] if prompt.messages else self.tokenizer.decode(prompt.tokens)
            text = self.tokenizer.decode(tokens)
            answers.append(Answer(prompt.tokens, text_prompt, tokens, text, one.ended, prompt.record, prompt.messages))
        scored = self.graders.score(answers)
        grades = [{name: of[number] for name, of in scored.by_name.items()} for number in range(len(answers))]
        found = [
            Graded(prompt, one, answer.text_prompt, answer.text, reward, grade)
            for prompt, one, answer, reward, grade in zip(asked, written, answers, scored.rewards, grades, strict=True)
        ]
        return found, scored.failures

    def _scores(self, batch: Batch) -> dict[str, Tensor]:
        """What `score` tells of all answers."""
        reference = self.objective.kl_coef > 0
        if not (reference or self.remembers):
            return {}

        def part() -> dict[str, Tensor]:
            low, high = share(0, self.answers, self.world.data_rank, self.world.data_size)
            with self.forward_context():
                return score(
                    self.model,
                    {name: values[low:high] for name, values in batch.items()},
                    temperature=self.objective.temperature,
                    policy=self.remembers,
                    reference=reference,
                    rows_at_once=self.job.trainer.micro_batch_size,
                )

        parts = self._together(part)
        return {name: torch.cat([one[name] for one in parts]) for name in parts[0]}

    def _together(self, part: Callable[[], T]) -> list[T]:
        """What the processes make of their shares, in order, on all of them; an error of one is raised on each."""
        found: T | None = None
        error: UserError | None = None
        if self.world.counts:
            try:
                found = part()
            except UserError as caught:
                error = caught
        parts = self.world.gather((found, error))
        for _, failed in parts:
            if failed is not None:
                raise failed
        return [one for one, _ in parts if one is not None]

    # ---- how good they were

    def _credit_answers(self, batch: Batch, rewards_N: Tensor, kept_NT: Tensor, graded: Sequence[Graded]) -> None:
        spec, objective = self.spec, self.objective
        assert isinstance(spec, Grpo)
        assert isinstance(objective, Policy)
        if spec.long_interval is not None:
            rewards_N = rewards_N + long_answer_penalty(kept_NT.sum(1), spec.max_tokens, spec.long_interval)
        advantages_N = group_advantages(rewards_N.view(-1, spec.group), spec.baseline).flatten()
        batch["advantages"] = advantages_N[:, None] * kept_NT
        batch["weights"] = token_weights(objective.aggregation, kept_NT, spec.max_tokens)
        if spec.unended is Unended.none:
            ended_N1 = torch.tensor([[one.written.ended] for one in graded])
            batch["labels"] = batch["labels"].where(ended_N1, IGNORE)

    def _credit_tokens(
        self, batch: Batch, rewards_N: Tensor, kept_NT: Tensor, kl_coef: float, metrics: dict[str, float]
    ) -> float:
        """Advantages and returns of tokens; the factor of the next iteration's penalty."""
        spec = self.spec
        assert isinstance(spec, Ppo)
        if spec.clip_reward is not None:
            rewards_N = rewards_N.clamp(-spec.clip_reward, spec.clip_reward)
        kl_NT = torch.zeros_like(batch["old_logps"])
        kl = 0.0
        if "reference_token_logps" in batch:
            kl_NT = k1(batch["old_logps"], batch["reference_token_logps"]) * kept_NT
            kl = metrics["kl_to_reference"] = float(kl_NT.sum() / kept_NT.sum().clamp_min(1))
            insist_near(self.spec, kl)
        rewards_NT = token_rewards(rewards_N, kl_NT, kept_NT, kl_coef)
        if spec.whiten_rewards:
            rewards_NT = whitened(rewards_NT, kept_NT, shift=False)
        values_NT = batch["old_values"]
        advantages_NT, batch["returns"] = generalized_advantages(rewards_NT, values_NT, kept_NT, spec.gamma, spec.lam)
        unexplained = (batch["returns"] - values_NT)[kept_NT].var(correction=0)
        metrics["value_explained"] = float(1 - unexplained / batch["returns"][kept_NT].var(correction=0).clamp_min(1e-12))
        batch["advantages"] = whitened(advantages_NT, kept_NT) if spec.whiten_advantages else advantages_NT
        batch["weights"] = token_weights(Aggregation.token, kept_NT, spec.max_tokens)
        metrics["kl_coef"] = kl_coef
        return kl_coef if spec.kl_target is None else adapted(kl_coef, kl, spec.kl_target)

    def _metrics(self, graded: Sequence[Graded], counts: dict[str, Any], kept_NT: Tensor) -> dict[str, float]:
        rewards = torch.tensor([one.reward for one in graded], dtype=torch.float64)
        found = {"reward": float(rewards.mean()), "reward_std": float(rewards.std(correction=0))}
        for name in self.graders.specs:
            grades = [grade for one in graded if (grade := one.grades[name]) is not None]
            if grades:
                found[f"reward/{name}"] = math.fsum(grades) / len(grades)
        answers = len(graded)
        return {
            **found,
            "answer_tokens": float(kept_NT.sum()) / answers,
            "ended": sum(one.written.ended for one in graded) / answers,
            "empty": sum(not one.text.strip() for one in graded) / answers,
            "ungraded": float(sum(counts["failures"].values())),
            **({"equal_groups": counts["equal"] / counts["prompts"]} if self.group > 1 else {}),
        }


def prompt_at(rows: Rows, place: int) -> Prompt:
    """The prompt in a row, of whichever source it is."""
    for part in rows.sources.values():
        if place < len(part):
            return prompt_at(part, place)
        place -= len(part)
    assert isinstance(rows, PromptRows)
    return rows.prompt(place)


def insist_near(spec: RlSpec, kl: float) -> None:
    """End a run whose policy has left its reference, `kl` nats per token away."""
    if spec.max_kl is not None and not kl <= spec.max_kl:
        raise UserError(
            f"the policy has left the reference: {kl:.3g} nats per token, and stage.max_kl={spec.max_kl:g}. Try a lower optim.lr, a higher "
            f"stage.objective.kl_coef or fewer stage.epochs; stage.max_kl=null goes on all the same"
        )
