"""Catalogue of stages that make a pretrained model useful: instructions, rewards, preferences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import at_least
from llmfactory.objective.preference_spec import Compares, PreferenceSpec, Reference
from llmfactory.parallel.spec import Mesh
from llmfactory.peft.lora_spec import Lora, Start
from llmfactory.peft.spec import AdapterSpec, None_
from llmfactory.stage.base_spec import StageSpec, TrainingSpec

if TYPE_CHECKING:
    from llmfactory.config.spec import Job
    from llmfactory.objective.objective import Objective
    from llmfactory.stage.job import StageJob


@dataclass(kw_only=True, slots=True)
class Sft(TrainingSpec):
    """Supervised fine-tuning: learn from conversations to write what the assistant writes (Wei et al. 2022; Ouyang et al. 2022)."""


@dataclass(kw_only=True, slots=True)
class Reward(TrainingSpec):
    """Learn to judge: a model with one number as its answer learns from answers that are compared, ranked or scored."""

    shared_prompt: bool = False
    """Compute the prompt of a record once for all of its answers, which are branches behind it: the same numbers for less work."""


@dataclass(kw_only=True, slots=True)
class Fisher(StageSpec):
    """Measure how much each weight of the model of `init` matters to `data`, that of its own run if no other is named, so that
    stage/anchor=ewc can hold on to what matters (Kirkpatrick et al. 2017)."""

    rows: int = 256
    """Training rows to measure on, spread evenly; each takes a forward and a backward pass of its own."""
    path: str | None = None
    """File to write; None: fisher.safetensors in the folder of init, where stage/anchor=ewc looks for it."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "rows")

    def build(self) -> StageJob:
        from llmfactory.stage.fisher import FisherJob

        return FisherJob(self)


@dataclass(kw_only=True, slots=True)
class Preference(TrainingSpec):
    """Learn from answers that are compared or labelled, without a reward model (Rafailov et al. 2023)."""

    reference: Reference | None = None
    """Where the log-probabilities come from that those of the model are compared with; None: the cheapest that the objective, the
    adapters and the layout allow (`reference_in`)."""
    shared_prompt: bool = False
    """Compute the prompt of a record once for all of its answers, which are branches behind it: the same numbers for less work."""

    def reference_in(self, job: Job) -> Reference:
        """The one that is used: none for objectives that do without, the base where adapters alone are trained, what was computed
        before where layers are dealt to a pipeline, else a frozen copy."""
        objective = self.objective
        if self.reference is not None:
            return self.reference
        if not isinstance(objective, PreferenceSpec) or objective.compares in (Compares.seldom, Compares.never):
            return Reference.none
        if isinstance(job.parallel, Mesh) and job.parallel.pp > 1:
            return Reference.precomputed
        if isinstance(job.peft, None_) or job.peft.changes_base:
            return Reference.copy
        return Reference.base if starts_at_its_base(job) else Reference.precomputed

    def trained(self, job: Job) -> Objective:
        assert isinstance(self.objective, PreferenceSpec)
        return self.objective.build(self.reference_in(job))


def starts_at_its_base(job: Job) -> bool:
    """Whether switching its adapters off gives back the model that training started from: those that cannot be put into weights may
    be the adapters of `init`, which go on."""
    peft = job.peft
    if not peft.merges and job.init is not None:
        return False
    if not isinstance(peft, AdapterSpec) or peft.changes_base or peft.train:
        return False
    return not (isinstance(peft, Lora) and peft.start is Start.pissa)
