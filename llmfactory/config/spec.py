"""The root of every job's config."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, at_least
from llmfactory.data.spec import DataSpec
from llmfactory.guard.spec import GuardSpec
from llmfactory.guard.spec import None_ as NoGuard
from llmfactory.launch.spec import LaunchSpec
from llmfactory.model.spec import ModelSpec
from llmfactory.optim.spec import OptimSpec
from llmfactory.parallel.plan.spec import Detected, HardwareSpec
from llmfactory.parallel.spec import ParallelSpec
from llmfactory.peft.spec import PeftSpec
from llmfactory.precision.spec import PrecisionSpec
from llmfactory.run.spec import Trainer
from llmfactory.stage.spec import StageSpec
from llmfactory.tracking.spec import TrackingSpec


class Resume(Enum):
    """What to do when the run folder is there already."""

    auto = "go on from its last checkpoint if the config is the same but for resume-safe keys, else stop"
    changed = "go on although keys differ"
    never = "stop"


@dataclass(kw_only=True, slots=True)
class Job(Spec):
    """Everything one run needs, and nothing else."""

    model: ModelSpec
    data: DataSpec
    stage: StageSpec
    optim: OptimSpec
    parallel: ParallelSpec
    hardware: HardwareSpec = field(default_factory=Detected)
    """What plans reckon with; training uses what it finds."""
    precision: PrecisionSpec
    peft: PeftSpec
    trainer: Trainer
    guard: GuardSpec = field(default_factory=NoGuard)
    """What is done about steps that go wrong."""
    tracking: TrackingSpec
    launch: LaunchSpec
    name: str | None = None
    """Name of the run folder; None: made from model, data, date and a random word."""
    seed: int = 0
    """Of initial weights, sample order, dropout and sampling."""
    output_dir: str = "outputs"
    """Folder of the run folders, relative to where the command runs."""
    init: str | None = None
    """What the job starts with: a run folder (or one of its checkpoints) with its weights, model, tokenizer and data, or a
    published model (a Hugging Face folder, a GGUF file) with its weights, model and tokenizer; None: random weights."""
    init_trained: bool = False
    """Of a run of ours that handed on an average of its weights (`optim.average`), take those that it trained."""
    resume: Resume = Resume.auto
    """What to do when the run folder is there already."""
    toy: bool = False
    """Shrink the model to laptop size, keeping its ratios and pattern."""
    plugins: list[str] = field(default_factory=list)
    """Packages of your own that hold parts, stages or options, besides those that are installed as plugins."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 0, "seed")
        if self.name is not None and (not self.name or self.name.startswith(".") or Path(self.name).name != self.name):
            yield Problem("name", self.name, "is the name of one folder below output_dir", "name=null")
        if self.init_trained and self.init is None:
            yield Problem("init_trained", True, "it is about the weights of init, which is not given", "init_trained=false")
        if not self.output_dir:
            yield Problem("output_dir", self.output_dir, "must name a folder", "output_dir=outputs")
