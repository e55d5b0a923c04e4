"""A small real job for the tests of training: a two-layer model and a few kilobytes of text, prepared by the real pipeline."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import torch

from llmfactory.config.spec import Job
from llmfactory.data.pack.spec import Concat, PackSpec
from llmfactory.data.prepare import prepare
from llmfactory.data.prepared import Prepared
from llmfactory.data.source.spec import Files
from llmfactory.data.spec import Corpus
from llmfactory.data.tokenizer.spec import Bytes
from llmfactory.launch.spec import Single
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import PreNorm
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Activation, Glu
from llmfactory.model.head.spec import Lm
from llmfactory.model.norm.spec import RmsNorm
from llmfactory.model.position.spec import Rope
from llmfactory.model.spec import DecoderOnly
from llmfactory.objective.spec import Causal
from llmfactory.optim.schedule.spec import Cosine
from llmfactory.optim.spec import Adamw
from llmfactory.parallel.mesh import World
from llmfactory.parallel.spec import Mesh
from llmfactory.parallel.weights import allocate
from llmfactory.peft.spec import None_ as NoPeft
from llmfactory.precision.spec import Fp32
from llmfactory.run.display import Display
from llmfactory.run.fit import Fitted, fit
from llmfactory.run.spec import Device, Trainer
from llmfactory.stage.spec import Pretrain
from llmfactory.stage.training import TrainingStage
from llmfactory.tracking.spec import None_ as NoTracking
from llmfactory.tracking.tracker import Tracker

SENTENCE = "the model reads a few words of plain text and learns which letter follows which other letter in them"
WORDS = SENTENCE.split()


def write_text(folder: Path, documents: int = 60) -> str:
    """A file of documents of uneven length, the same every time; returns the setting of `files` for it."""
    lines = []
    for number in range(documents):
        length = 3 + number * number % 23
        lines.append(" ".join(WORDS[(number * 7 + k * k * 3) % len(WORDS)] for k in range(length)))
    path = folder / "text.txt"
    if not path.exists():  # whole or not at all: several processes may come at once
        own = path.with_suffix(f".{os.getpid()}")
        own.write_text("\n---\n".join(lines) + "\n", encoding="utf-8")
        own.replace(path)
    return str(path)


def toy_job(folder: Path, *, pack: PackSpec | None = None, **changes: Any) -> Job:
    """`changes` replace fields of the job (a spec) or, with a dotted name written `trainer__max_steps`, of one of its parts."""
    job = Job(
        model=DecoderOnly(
            vocab_size=257,
            dim=16,
            max_positions=64,
            n_layers=2,
            norm=RmsNorm(),
            position=Rope(),
            attention=Gqa(n_heads=4, n_kv_heads=2),
            ffn=Glu(hidden=24, activation=Activation.silu),
            block=PreNorm(),
            embedding=Token(),
            head=Lm(tied=True),
        ),
        data=Corpus(
            source=Files(files=[write_text(folder)], split_on="---"),
            tokenizer=Bytes(),
            pack=pack or Concat(),
            seq_len=32,
            held_out=0.2,
            cache=str(folder / "cache"),
            workers=1,
        ),
        stage=Pretrain(objective=Causal()),
        optim=Adamw(lr=1e-2, schedule=Cosine(warmup_steps=2, horizon=40)),
        parallel=Mesh(),
        precision=Fp32(),
        peft=NoPeft(),
        trainer=Trainer(max_steps=8, batch_size=8, log_every=1, eval_every=4, eval_rows=8, save_every=4, device=Device.cpu),
        tracking=NoTracking(),
        launch=Single(),
    )
    for name, value in changes.items():
        *parts, field = name.split("__")
        job = _changed(job, parts, field, value)
    return job


def _changed(spec: Any, parts: list[str], field: str, value: Any) -> Any:
    if not parts:
        return dataclasses.replace(spec, **{field: value})
    return dataclasses.replace(spec, **{parts[0]: _changed(getattr(spec, parts[0]), parts[1:], field, value)})


def prepared(job: Job) -> Prepared:
    return prepare(job.data, job.model.vocab_size, specials=job.stage.objective.specials())


class Memory(Tracker):
    """Keeps the rows."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}
        self.rewound: list[int] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.rows.setdefault(step, {}).update(metrics)

    def rewind(self, step: int) -> None:
        self.rewound.append(step)
        self.rows = {number: row for number, row in self.rows.items() if number <= step}

    def finish(self, summary: dict[str, float]) -> None:
        pass

    def curve(self) -> dict[int, dict[str, str]]:
        """Everything but the speed, to the last digit (as text, since NaN differs from itself)."""
        return {step: {k: repr(v) for k, v in row.items() if k != "tokens_per_second"} for step, row in self.rows.items()}


class Sender(Memory):
    """Sends this process a signal when a step is logged."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGTERM) -> None:
        super().__init__()
        self.step, self.number = step, number

    def log(self, step: int, metrics: dict[str, float]) -> None:
        super().log(step, metrics)
        if step == self.step and "loss" in metrics:
            os.kill(os.getpid(), self.number)


class Notes(Display):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def preparing(self, what: str, done: int, total: int | None) -> None:
        pass

    def start(self, total_steps: int, start_step: int) -> None:
        self.started = total_steps, start_step

    def update(self, step: int, metrics: dict[str, float]) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stop(self) -> None:
        pass


def train(job: Job, folder: Path, tracker: Memory | None = None, display: Notes | None = None) -> tuple[Fitted, Memory]:
    tracker = tracker or Memory()
    return fit(job, prepared(job), folder, tracker, display or Notes()), tracker


def filled(stage: TrainingStage) -> TrainingStage:
    """With its first weights, in this process alone."""
    world = World(torch.device("cpu"))
    allocate(stage.root, world.device)
    stage.fill(world)
    return stage


def weights(fitted: Fitted) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in fitted.model.state_dict().items()}
