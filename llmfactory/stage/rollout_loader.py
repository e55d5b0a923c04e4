"""Batches of a run that learns from rewards: where others read rows, it lets the model write them.

An iteration's answers are learned from in `epochs` passes of steps; when they are used up, the next iteration is made with the weights
as they stand. So the loader must never be asked for a batch ahead of its step: it has a length, and Lightning then asks in time.

Its place (iteration, step within it, prompts that were put, factor of the penalty) and the rollout at hand are kept with a checkpoint, so
that a run that goes on is the unbroken one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmfactory.core.errors import UserError
from llmfactory.core.sharding import name_seed
from llmfactory.data.loader import share
from llmfactory.stage.iteration import Rounds, insist_near
from llmfactory.stage.rollout import chosen

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch

FOLDER = "rollout"
"""Name of the folder in a checkpoint."""
PLACE, ROWS = "place.json", "rows.safetensors"
NAMING = ("prompts", "rewards")
"""Fields that tell which answers these are; nothing is learned from them."""


@dataclass(slots=True)
class Place:
    """How far a run has come, besides its steps."""

    iteration: int = 0
    """Iterations begun."""
    step: int = 0
    """Steps of the iteration that are done."""
    drawn: int = 0
    """Prompts that were put."""
    kl_coef: float = 0.0
    """Factor of PPO's penalty in the next iteration."""
    done: bool = True
    """Whether the answers at hand are used up."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last iteration."""
    seconds: dict[str, float] = field(default_factory=lambda: {"rollout": 0.0, "score": 0.0, "update": 0.0})
    """Of the whole run, by what they went to."""
    failures: dict[str, int] = field(default_factory=dict)
    """Answers without a grade, by grader and reason."""
    first_reward: float | None = None
    """Mean reward of the first iteration."""
    early: int = 0
    """Iterations whose steps ended early."""


class RolloutLoader:
    """`first`: number of the first step, from 0; `measures` gives what was watched in the last step, over all processes; `clock` the
    seconds of training so far."""

    def __init__(
        self,
        rounds: Rounds,
        *,
        steps: int,
        first: int = 0,
        measures: Callable[[], dict[str, float]],
        clock: Callable[[], float],
        resume: Path | None = None,
    ) -> None:
        self.rounds, self.steps, self.measures, self.clock, self.resume = rounds, steps, measures, clock, resume
        self.first = first
        spec, trainer = rounds.spec, rounds.job.trainer
        self.batch_size = trainer.batch_size
        self.each = rounds.answers // trainer.batch_size
        """Steps of an epoch of an iteration."""
        self.place = Place(kl_coef=rounds.objective.kl_coef)
        self.rows: Batch = {}
        self.answered: dict[int, tuple[list[int], list[float]]] = {}
        """Prompts and rewards of the answers of the last steps, by step."""
        self._settled = True
        self._since: float | None = None
        self.most = spec.steps(trainer.batch_size)
        self.remembered = trainer.log_every  # a guard looks as often, or more often

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        if self.resume is not None:
            self._restore(self.resume / FOLDER)
        for step in range(self.first, self.first + self.steps):
            self.settle()
            if self.place.done:
                self._next()
            batch = self._step(step)
            self.place.step += 1
            self._settled = False
            yield batch

    def settle(self) -> None:
        """Look at what the last step has done, once: whether it ends the iteration, or the run. Called by every process."""
        if self._settled:
            return
        self._settled = True
        spec, place = self.rounds.spec, self.place
        place.done = place.step == self.most
        watched = self.measures() if spec.stop_kl is not None or spec.max_kl is not None else {}
        if spec.stop_kl is not None and watched.get("moved", 0.0) > spec.stop_kl and not place.done:
            place.done = True
            place.early += 1
        if math.isfinite(kl := watched.get("kl", 0.0)):  # else the step's loss was no number either, and it was held back
            insist_near(spec, kl)

    def metrics(self, step: int) -> dict[str, float]:
        """Of the iteration at hand; `step` is that of the run."""
        return self.place.metrics

    def _next(self) -> None:
        place = self.place
        if self._since is not None:
            place.seconds["update"] += self.clock() - self._since
        found = self.rounds.next(place.drawn, place.kl_coef)
        self.rows, place.drawn, place.kl_coef = found.rows, found.drawn, found.kl_coef
        place.iteration, place.step, place.done = place.iteration + 1, 0, False
        for name, seconds in found.seconds.items():
            place.seconds[name] += seconds
        for reason, times in found.failures.items():
            place.failures[reason] = place.failures.get(reason, 0) + times
        place.metrics = {"iteration": float(place.iteration), **found.metrics}
        place.metrics |= {f"{name}_seconds": seconds for name, seconds in place.seconds.items()}
        if place.first_reward is None:
            place.first_reward = found.metrics["reward"]
        self._since = self.clock()

    def _step(self, step: int) -> Batch:
        """This process's share of a step's answers, as wide as the longest of all."""
        epoch, number = divmod(self.place.step, self.each)
        answers, world = self.rounds.answers, self.rounds.world
        order = self._order(epoch, answers)[number * self.batch_size : (number + 1) * self.batch_size]
        self.answered[step] = self.rows["prompts"][order].tolist(), self.rows["rewards"][order].tolist()
        self.answered.pop(step - self.remembered, None)
        low, high = share(0, self.batch_size, world.data_rank, world.data_size)
        width = int(self.rows["segments"][order].sum(1).max())
        return chosen({name: field for name, field in self.rows.items() if name not in NAMING}, order[low:high], width)

    def _order(self, epoch: int, answers: int) -> Tensor:
        if self.most == 1:
            return torch.arange(answers)
        seed = name_seed(self.rounds.job.seed, f"iteration {self.place.iteration} epoch {epoch}")
        return torch.randperm(answers, generator=torch.Generator().manual_seed(seed))

    # ---- checkpoints

    def keep(self) -> Callable[[Path], None]:
        """What writes the state of this moment into a checkpoint's folder, on one process; called by every process."""
        self.settle()
        now = self.clock()
        if self._since is not None:
            self.place.seconds["update"] += now - self._since
            self._since = now
        text, rows = json.dumps(asdict(self.place)), {} if self.place.done else self.rows

        def write(path: Path) -> None:
            (path / FOLDER).mkdir()
            (path / FOLDER / PLACE).write_text(text + "\n", encoding="utf-8")
            if rows:
                save_file({name: field.contiguous() for name, field in rows.items()}, path / FOLDER / ROWS)

        return write

    def _restore(self, folder: Path) -> None:
        try:
            self.place = Place(**json.loads((folder / PLACE).read_text(encoding="utf-8")))
            self.rows = {} if self.place.done else load_file(folder / ROWS)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{folder} does not hold the rollout that the run was at: {error}") from error
        self._since = self.clock()
