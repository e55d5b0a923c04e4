"""Each objective teaches its model: after a short training the held-out loss is below the entropy of the targets' own frequencies,
which is what a model reaches that knows these and nothing of the text around.

On a small text by default, on the documentation of this Python with `-m slow`.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_job import WORDS, Notes, prepared

from llmfactory.config.compose import compose_job
from llmfactory.config.spec import Job
from llmfactory.core.batch import IGNORE
from llmfactory.parallel.mesh import World
from llmfactory.run.fit import fit
from llmfactory.stage.evaluate import measure
from llmfactory.stage.rows import task_rows
from llmfactory.tracking.none import NoTracker

COMMON = [
    "data/tokenizer=bytes",
    "trainer.eval_every=null",
    "trainer.keep_best=false",
    "trainer.save_every=null",
    "trainer.device=cpu",
    "trainer.batch_size=32",
    "optim/schedule=constant",
    "optim.schedule.warmup_steps=10",
    "tracking=none",
    "model.vocab_size=384",
]
SMALL = ["model.dim=32", "model.n_layers=2", "model.ffn.hidden=64", "model.attention.n_heads=4", "model.max_positions=64"]
ENCODER = ["model=bert_tiny", *SMALL, "model/block=pre_norm", "model/position=rope", "optim.lr=1e-2"]
DECODER = ["model=llama_tiny", *SMALL, "model/attention=gqa", "optim.lr=1e-2"]
T5 = ["toy=true", "model=t5_small", "optim.lr=1e-2"]
BART, XLNET = (["toy=true", f"model={name}", "model.init_std=0.1", "optim.lr=5e-3"] for name in ("bart_base", "xlnet_base"))
MODELS = {
    "causal": DECODER,
    "prefix": DECODER,
    "blank_infilling": [*DECODER, "model/position=rope_2d"],
    "masked": ENCODER,
    "replaced_token": [*ENCODER, "model/head=discriminator", "stage.objective.generator_scale=0.5", "optim.lr=5e-3"],
    "span_corruption": T5,
    "ul2": T5,
    "denoising": BART,
    "permutation": XLNET,
}
STEPS = {"replaced_token": 120}
"""More than others need."""


def job_of(objective: str, *overrides: str) -> Job:
    return compose_job([f"stage/objective={objective}", *MODELS[objective], *COMMON, *overrides]).job


def text_of(folder: Path) -> Path:
    """Documents of random words: which letters a word has can be learned, nothing can be learned by heart."""
    numbers = random.Random(0)
    documents = [" ".join(numbers.choice(WORDS) for _ in range(numbers.randint(5, 40))) for _ in range(400)]
    path = folder / "text.txt"
    path.write_text("\n---\n".join(documents) + "\n", encoding="utf-8")
    return path


def entropy(counts: torch.Tensor) -> float:
    """In nats, of a distribution."""
    shares = counts[counts > 0].double() / counts.sum()
    return float(-(shares * shares.log()).sum())


def learned(job: Job, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Held-out loss by term, and what each would be without a look at the text."""
    data = prepared(job)
    fitted = fit(job, data, folder, NoTracker(), Notes())
    objective = job.stage.objective.build()  # type: ignore[attr-defined]
    rows = task_rows(job, objective, data, "held_out")
    found = measure(fitted.model, objective, rows, job.precision.build("cpu"), World(torch.device("cpu")), 32)
    batch = rows.read(np.arange(len(rows)))
    labels = batch["labels"][batch["labels"] != IGNORE]
    loss = {name: total / found.counts[name] for name, total in found.sums.items()}
    alone = {"loss": entropy(labels.bincount()), "generator": entropy(labels.bincount())}
    if "discriminator" in loss:  # every masked token replaced would be the most; the fewer, the lower its entropy
        share = len(labels) / (batch["segments"] > 0).sum()
        loss["discriminator"] /= job.stage.objective.weight  # type: ignore[attr-defined]
        alone["discriminator"] = entropy(torch.stack([share, 1 - share]))
    return loss, alone


def insist(loss: dict[str, float], alone: dict[str, float], by: dict[str, float]) -> None:
    for name, value in loss.items():
        assert value < alone[name] - by.get(name, 0.1), f"{name}: {value:.3f}, without the text {alone[name]:.3f}"


@pytest.mark.parametrize("objective", list(MODELS))
def test_on_a_small_text(objective: str, tmp_path: Path) -> None:
    job = job_of(
        objective,
        "data=text",
        f"data.source.files=[{text_of(tmp_path)}]",
        "data.source.split_on='---'",
        "data.held_out=0.2",
        f"data.cache={tmp_path / 'cache'}",
        "data.seq_len=48",
        f"trainer.max_steps={STEPS.get(objective, 60)}",
    )
    insist(*learned(job, tmp_path / "run"), {"discriminator": 0.02})


@pytest.mark.slow
@pytest.mark.parametrize("objective", list(MODELS))
def test_on_documentation(objective: str, tmp_path: Path) -> None:
    job = job_of(objective, "data=pydocs", "data.seq_len=64", "data.held_out=0.005", "trainer.max_steps=300")
    insist(*learned(job, tmp_path / "run"), {"discriminator": 0.02})


def test_the_baseline_is_computed_right() -> None:
    assert entropy(torch.tensor([1, 1, 0, 2])) == pytest.approx(1.5 * np.log(2))
