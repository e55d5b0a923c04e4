"""The bases of all stages' specs, for the pages of the catalogue that stand beside spec.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.spec import Spec
from llmfactory.data.spec import Mixture
from llmfactory.objective.base_spec import ObjectiveSpec
from llmfactory.objective.task_spec import Tilted
from llmfactory.stage.anchor.spec import AnchorSpec
from llmfactory.stage.anchor.spec import None_ as NoAnchor

if TYPE_CHECKING:
    from llmfactory.config.spec import Job
    from llmfactory.objective.objective import Objective
    from llmfactory.stage.job import StageJob


@dataclass(kw_only=True, slots=True)
class StageSpec(Spec):
    """Base of the stages."""

    keeps: ClassVar[bool] = False
    """It always has a run folder; others only where the job has a name."""

    def build(self) -> StageJob:
        """What to run, for stages that do not train."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of stage")


@dataclass(kw_only=True, slots=True)
class TrainingSpec(StageSpec):
    """Base of the stages that train."""

    keeps: ClassVar[bool] = True

    objective: ObjectiveSpec
    sample_prompt: str | None = None
    """Start of the sample at the end, of conversations a question; None: the first words of a held-out document, the first question
    of a held-out conversation."""

    anchor: AnchorSpec = field(default_factory=NoAnchor)
    """What holds the weights near those of `init`."""

    def trained(self, job: Job) -> Objective:
        """The objective as this stage trains it in a job."""
        if isinstance(self.objective, Tilted) and isinstance(job.data, Mixture):
            return self.objective.build(tuple(job.data.sources))
        return self.objective.build()
