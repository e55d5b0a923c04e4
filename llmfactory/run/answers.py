"""What a run that learns from rewards has in the place of rows: answers of the model as it stands, to prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from llmfactory.checkpoint.tensors import all_tensors
from llmfactory.config.spec import Job
from llmfactory.data.prepared import Prepared
from llmfactory.guard.spec import WatchSpec
from llmfactory.model.skeleton import Skeleton
from llmfactory.objective.rewarded import Rewarded
from llmfactory.parallel.mesh import World
from llmfactory.parallel.shard import reshard
from llmfactory.parallel.strategy import MeshStrategy
from llmfactory.parallel.weights import assemble
from llmfactory.precision.plugin import MeshPrecision
from llmfactory.run.laid_out import whole_on_meta
from llmfactory.run.progress import Progress
from llmfactory.run.supply import Supply
from llmfactory.run.worst_rows import SHOWN_LETTERS, outliers
from llmfactory.stage.evaluate import Measure
from llmfactory.stage.iteration import Graded, Rounds
from llmfactory.stage.rollout_loader import RolloutLoader
from llmfactory.stage.rows import Data, packed_rows
from llmfactory.stage.spec import Grpo, RlSpec
from llmfactory.stage.training import TrainingStage

SAMPLES = 3
"""Held-out prompts whose answers the end shows."""


class AnswerSupply(Supply):
    isolated = False  # one answer a row, padding on the right, where a causal mask hides it

    def __init__(self, job: Job, data: Data, world: World, progress: Progress, resume: Path | None, last_step: int) -> None:
        assert isinstance(data, Prepared)
        asking = _asking(job)
        rows, held_out = (packed_rows(asking, data, part, job.data.seq_len) for part in ("train", "held_out"))
        self.job, self.world, self.held_out = job, world, held_out
        self.rounds = Rounds(job, rows, data.tokenizer, world, self._forward_context, self._current)
        self.loader = self.steps = RolloutLoader(
            self.rounds,
            steps=max(1, last_step - progress.step),
            first=progress.step,
            measures=lambda: self.strategy.measures(),
            clock=progress.watch.read,
            resume=resume,
        )
        self._copy: Skeleton | None = None
        self._shown: list[Graded] = []
        self._failures: dict[str, int] = {}

    def begin(self, stage: TrainingStage, strategy: MeshStrategy, formats: MeshPrecision) -> None:
        Supply.begin(self, stage, strategy, formats)
        self.rounds.check()

    def samples(self, step: int) -> str:
        return f"answers of iteration {self.steps.place.iteration}, to prompts before number {self.steps.place.drawn} of the run"

    def named(self, step: int, spec: WatchSpec) -> dict[str, Any]:
        """The prompts that a step, from 0, has answers to, and the answers whose rewards stand out, in a guard's words."""
        numbers, rewards = self.steps.answered[step]
        rows = self.rounds.order(np.asarray(numbers, np.int64)).tolist()
        found: dict[str, Any] = {"learned_from": self.samples(step), "prompts": numbers, "rows": rows}
        if spec.name_rows:
            usual = float(np.median(rewards))
            places = outliers([abs(reward - usual) for reward in rewards], spec)
            asked = self.rounds.ask([numbers[place] for place in places])
            found["worst"] = [
                {
                    "row": rows[place],
                    "prompt": numbers[place],
                    "reward": rewards[place],
                    "documents": self.rounds.rows.documents(rows[place]),
                    "begins": self.rounds.tokenizer.decode(one.tokens)[:SHOWN_LETTERS],
                }
                for place, one in zip(places, asked, strict=True)
            ]
        return found

    def drawn(self, step: int) -> dict[str, float]:
        return self.steps.metrics(step)

    def measure(self, limit: int | None) -> Measure | None:
        count = len(self.held_out) if limit is None else min(limit, len(self.held_out))
        if not count:
            return None
        places = [number * len(self.held_out) // count for number in range(count)]
        graded, self._failures = self.rounds.judge(self.held_out, places)
        self._shown = graded[:SAMPLES]
        ungraded = sum(self._failures.values())
        return Measure(*Rewarded.sums([one.reward for one in graded], ungraded), Rewarded())

    def keep(self) -> Callable[[Path], None]:
        return self.steps.keep()

    def figures(self) -> dict[str, Any]:
        """Rewards at the beginning and at the end, where the time went, what had no grade, and some answers."""
        place = self.steps.place
        total = sum(place.seconds.values()) or 1.0
        shown = [{"prompt": one.text_prompt, "text": one.text, "reward": one.reward} for one in self._shown]
        found: dict[str, Any] = {
            "iterations": place.iteration,
            "first_reward": place.first_reward,
            "last_reward": place.metrics.get("reward"),
            "ungraded": sum(place.failures.values()),
            "ungraded_reasons": place.failures,
            "held_out_ungraded_reasons": self._failures,
            "ended_early": place.early,
            **{f"{name}_share": seconds / total for name, seconds in place.seconds.items()},
        }
        prompt = self.job.stage.sample_prompt if isinstance(self.job.stage, RlSpec) else None
        if prompt is not None:
            found["sample"] = {"prompt": prompt, "text": self.rounds.sample(prompt)}
        elif shown:
            found["sample"] = {"prompt": shown[0]["prompt"], "text": shown[0]["text"]}
        if not self.job.trainer.sample:
            found.pop("sample", None)
        return found | {"samples": shown}

    def _forward_context(self) -> Any:
        return self.formats.forward_context()

    def _current(self) -> Skeleton:
        """The model that writes: the one that is trained, or, where that lies over several processes, a whole copy of it."""
        if self.world.dense is None:
            return self.stage.model
        reshard(self.stage.root)
        if self._copy is None:
            empty = whole_on_meta(self.job, self.stage, self.formats)
            self._copy = empty.to_empty(device=self.world.device).eval()
            fresh = all_tensors(self.stage.model)
        else:  # what never changes is there already
            borrowed = self.stage.model.borrowed
            fresh = {name: tensor for name, tensor in all_tensors(self.stage.model).items() if name not in borrowed}
        places = all_tensors(self._copy)

        def fill(name: str, tensor: Tensor) -> None:
            places[name].copy_(tensor)

        assemble(fresh, self.world, fill)
        return self._copy


def _asking(job: Job) -> Job:
    """The job with as many rows a step as it puts prompts: mixtures may change with steps."""
    assert isinstance(job.stage, RlSpec)
    group = job.stage.group if isinstance(job.stage, Grpo) else 1
    prompts = max(1, job.trainer.batch_size // group // job.stage.epochs)
    return replace(job, trainer=replace(job.trainer, batch_size=prompts))
