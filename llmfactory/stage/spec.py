"""Catalogue of stages: what a job does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.beginning import Beginning
from llmfactory.core.errors import Problem
from llmfactory.core.spec import above, at_least, between
from llmfactory.stage.base_spec import StageSpec as StageSpec
from llmfactory.stage.base_spec import TrainingSpec as TrainingSpec
from llmfactory.stage.format.spec import FormatSpec
from llmfactory.stage.line_spec import Examine as Examine
from llmfactory.stage.line_spec import Line as Line
from llmfactory.stage.merge_spec import Merge as Merge
from llmfactory.stage.profile_spec import Profile as Profile
from llmfactory.stage.rejection_spec import Rejection as Rejection
from llmfactory.stage.rl_spec import Grpo as Grpo
from llmfactory.stage.rl_spec import Ppo as Ppo
from llmfactory.stage.rl_spec import RlSpec as RlSpec
from llmfactory.stage.tuning_spec import Fisher as Fisher
from llmfactory.stage.tuning_spec import Preference as Preference
from llmfactory.stage.tuning_spec import Reward as Reward
from llmfactory.stage.tuning_spec import Sft as Sft
from llmfactory.stage.tuning_spec import starts_at_its_base as starts_at_its_base

if TYPE_CHECKING:
    from llmfactory.stage.job import StageJob


@dataclass(kw_only=True, slots=True)
class Pretrain(TrainingSpec):
    """Train a model from random weights, or from those of `init`, on the rows of `data`."""

    embeddings_only_steps: int = 0
    """In the first steps, only the tables whose rows are tokens learn: embedding and head (the first of two phases after stage=extend)."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 0, "embeddings_only_steps")


@dataclass(kw_only=True, slots=True)
class Prepare(StageSpec):
    """Read, clean and tokenize `data`, once and for all jobs with the same, and report what became of every document."""

    keeps: ClassVar[bool] = True
    export: str | None = None
    """Folder for the documents that are left, as gzipped JSON lines; it must not exist yet. None: they are not written."""


@dataclass(kw_only=True, slots=True)
class Reweight(StageSpec):
    """Find weights for the sources of a mixture with two small models (DoReMi, Xie et al. 2023): `model` is trained as a reference
    for trainer.max_steps on the mixture as it is, and as a proxy for as many on what is left to learn."""

    keeps: ClassVar[bool] = True
    step_size: float = 1.0
    """How fast weights follow the excess loss, in nats per token."""
    smoothing: float = 0.001
    """Share of each step's weights that all sources get alike."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "step_size", repair=1.0)
        yield from between(self, 0.0, 1.0, "smoothing")

    def build(self) -> StageJob:
        from llmfactory.stage.reweight import ReweightJob

        return ReweightJob(self)


@dataclass(kw_only=True, slots=True)
class Generate(StageSpec):
    """Continue a text with the model of `init`."""

    prompt: str
    """The text to continue."""
    chat: bool = False
    """The prompt is a question, put to the model by its own chat template; false: a text that the model goes on with."""
    system: str | None = None
    """With `chat`: the system message before the question; None: what the template says without one."""
    max_tokens: int = 200
    """Most tokens to add; generation also ends at the end-of-document token."""
    temperature: float = 0.8
    """Divides the logits; 0: always the most likely token."""
    top_k: int | None = 50
    """Sample among that many most likely tokens; None: among all."""
    top_p: float | None = None
    """Sample among the fewest most likely tokens whose probabilities add up to it; None: no limit."""
    min_p: float | None = None
    """Sample among tokens at least that share as likely as the most likely one; None: no limit."""
    repetition_penalty: float = 1.0
    """Makes tokens that stand in the text already less likely; 1: leaves them alone."""
    stop: list[str] = field(default_factory=list)
    """Texts at which a continuation ends; they are not part of it."""
    samples: int = 1
    """Continuations to write."""
    beams: int = 1
    """Beam search: keep that many most likely continuations at each length and write the best; 1: sample."""
    length_penalty: float = 1.0
    """Beam search scores a continuation by log p / length^length_penalty: more favors long ones."""
    adapters: dict[str, str] = field(default_factory=dict)
    """Adapters beside the model of `init`, each of which answers in its turn, by names of your own: runs that trained them, or folders of
    the library peft. 'stage.adapters={math: outputs/math, chat: outputs/chat}'"""
    stacked: bool = False
    """All of `adapters` at once, their changes added up; false: one after the other."""
    adapter_weights: dict[str, float] = field(default_factory=dict)
    """What the change of an adapter is multiplied by, by name; one that is not named has weight 1."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "max_tokens", "top_k", "samples", "beams")
        if self.system is not None and not self.chat:
            yield Problem("system", self.system, "a text that is continued has no system message", "chat=true")
        yield from at_least(self, 0.0, "temperature")
        yield from between(self, 0.01, 1.0, "top_p")
        yield from between(self, 0.0, 1.0, "min_p")
        yield from above(self, 0.0, "repetition_penalty", repair=1.0)
        if "" in self.stop:
            yield Problem("stop", self.stop, "an empty text stands everywhere, so it cannot end one", "stop=[]")
        yield from self._adapters_by_name()
        if self.beams > 1:
            yield from self._sampling_with_beams()
        elif self.length_penalty != 1.0:
            yield Problem("length_penalty", self.length_penalty, "it scores beams, and beams=1 has none", "length_penalty=1.0")

    def _adapters_by_name(self) -> Iterator[Problem]:
        for name in self.adapters:
            if not name.isidentifier() or name == "default":
                yield Problem(
                    "adapters", name, "is no name for an adapter: letters, digits and _, and not default", "adapters={}"
                )
        if unknown := sorted(set(self.adapter_weights) - set(self.adapters)):
            there = ", ".join(self.adapters) or "none"
            yield Problem("adapter_weights", unknown[0], f"no adapter is called so: there are {there}", "adapter_weights={}")
        if self.stacked and len(self.adapters) < 2:
            yield Problem("stacked", True, f"adapters has {len(self.adapters) or 'nothing'} to add up", "stacked=false")

    def _sampling_with_beams(self) -> Iterator[Problem]:
        """Beam search draws nothing, so what says how to draw would do nothing."""
        for name, neutral, repair in (
            ("temperature", 0.0, "0"),
            ("top_k", None, "null"),
            ("top_p", None, "null"),
            ("min_p", None, "null"),
            ("repetition_penalty", 1.0, "1.0"),
            ("samples", 1, "1"),
        ):
            if getattr(self, name) != neutral:
                reason = f"beam search (beams={self.beams}) takes the most likely continuation and draws nothing"
                yield Problem(name, getattr(self, name), reason, f"{name}={repair}")

    def build(self) -> StageJob:
        from llmfactory.stage.generate import GenerateJob

        return GenerateJob(self)


@dataclass(kw_only=True, slots=True)
class Evaluate(StageSpec):
    """Loss, perplexity and bits per byte of the model of `init` on the held-out documents of `data`."""

    batch_size: int = 16
    """Rows that go through the model at once. Changes memory and speed, not the result."""
    compressors: bool = True
    """Also measure gzip -9 and xz -9, primed with the training text, on the same documents."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "batch_size")

    def build(self) -> StageJob:
        from llmfactory.stage.evaluate import EvaluateJob

        return EvaluateJob(self)


@dataclass(kw_only=True, slots=True)
class Describe(StageSpec):
    """Print the composed job: its tree, where each value came from, and the model's parameters part by part."""

    presets: bool = False
    """Print instead what each preset of `model` is made of, as a table in Markdown."""

    def build(self) -> StageJob:
        from llmfactory.stage.describe import DescribeJob

        return DescribeJob()


@dataclass(kw_only=True, slots=True)
class Export(StageSpec):
    """Write the model of `init`, its tokenizer and its chat template in a format that other programs read."""

    format: FormatSpec
    path: str
    """Folder or file to write; it must not exist yet."""
    family: str | None = None
    """The `model_type` to say the model in; None: the one it was published as, or the first that can say it exactly."""

    def problems(self) -> Iterator[Problem]:
        if not self.path:
            yield Problem("path", self.path, "must name what to write", "path=exported")

    def build(self) -> StageJob:
        from llmfactory.stage.export import ExportJob

        return ExportJob(self)


@dataclass(kw_only=True, slots=True)
class Extend(StageSpec):
    """Give the tokenizer of `init` new pieces for the text of `data`, and its model rows for them."""

    path: str
    """Folder to write; it must not exist yet. `init=<path>` trains the model further."""
    begin: Beginning = Beginning.mean_of_pieces
    """What the rows of new tokens begin as."""

    def problems(self) -> Iterator[Problem]:
        if not self.path:
            yield Problem("path", self.path, "must name what to write", "path=extended")

    def build(self) -> StageJob:
        from llmfactory.stage.extend import ExtendJob

        return ExtendJob(self)


@dataclass(kw_only=True, slots=True)
class Embed(StageSpec):
    """Make vectors of texts with the model of `init`, and say how alike they are."""

    texts: list[str]
    """Texts to embed."""

    def problems(self) -> Iterator[Problem]:
        if not self.texts:
            yield Problem("texts", self.texts, "must hold a text at least", "texts=[Hello]")

    def build(self) -> StageJob:
        from llmfactory.stage.embed import EmbedJob

        return EmbedJob(self)


class Axis(Enum):
    """Which processes talk to each other."""

    world = "all of them"
    all = "all of them, and then each axis of the layout that is longer than one"
    pp = "the stages of a pipeline"
    dp_replicate = "the copies of the model"
    dp_shard = "data-parallel processes that share weights"
    cp = "the pieces of a row"
    tp = "the pieces of a matrix"
    ep = "the groups that experts are dealt to"


@dataclass(kw_only=True, slots=True)
class BenchComm(StageSpec):
    """Measure how fast the processes talk to each other, by operation and message size, for `hardware=measured`."""

    axis: Axis = Axis.world
    """Which processes talk to each other; the groups of an axis all at once, as they do in training."""
    min_bytes: int = 1024
    """Smallest message, in bytes."""
    max_bytes: int = 64 * 2**20
    """Largest message, in bytes."""
    factor: int = 4
    """Each size is that many times the one before."""
    warm_up: int = 3
    """Operations of each size that are thrown away."""
    repeats: int = 15
    """Samples of each size; their median counts."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "min_bytes", "warm_up", "repeats")
        yield from at_least(self, 2, "factor")
        if self.max_bytes < max(1, self.min_bytes):
            repair = f"max_bytes={max(1, self.min_bytes)}"
            yield Problem("max_bytes", self.max_bytes, f"the smallest message (min_bytes) has {self.min_bytes}", repair)

    def build(self) -> StageJob:
        from llmfactory.stage.bench_comm import BenchCommJob

        return BenchCommJob(self)


@dataclass(kw_only=True, slots=True)
class Plan(StageSpec):
    """Say what a training job with this model, layout and hardware needs and how long it takes, without running it."""

    tokens: float | None = None
    """Tokens to train on; None: those of `trainer.max_steps` steps."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "tokens", repair=1e9)

    def build(self) -> StageJob:
        from llmfactory.stage.plan import PlanJob

        return PlanJob(self)
