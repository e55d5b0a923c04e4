"""Every kind of model and objective takes the same steps in micro-batches and on two processes, in float64.

Without dropout, whose masks are drawn for each process and micro-batch. Where rows are corrupted, the sample number decides how, so no process and no micro-batch sees another row than the whole step.
"""

from __future__ import annotations

from pathlib import Path

import pool
import pytest
import torch
from toy_job import Memory, Notes, write_text

from llmfactory.config.compose import compose_job
from llmfactory.config.spec import Job
from llmfactory.run.fit import fit
from llmfactory.stage.rows import read_data

Steps = tuple[list[float], list[float], dict[str, torch.Tensor]]
CASES = {
    "encoder": ["model=bert_tiny", "stage/objective=masked"],
    "shared layers": ["model=albert_base", "stage/objective=masked", "toy=true"],
    "encoder-decoder": ["model=t5_small", "stage/objective=span_corruption", "toy=true"],
    "denoising": ["model=bart_base", "stage/objective=denoising", "toy=true"],
    "two streams": ["model=xlnet_base", "stage/objective=permutation", "toy=true"],
    "blanks": ["model=chatglm_6b", "stage/objective=blank_infilling", "toy=true"],
    "replaced tokens": [
        "model=electra_small",
        "stage/objective=replaced_token",
        "toy=true",
        "model.dropout=0",
        "model.attention.dropout=0",
    ],
    "lstm": ["model=lstm_tiny", "toy=true"],
    "mamba": ["model=mamba_tiny", "toy=true"],
    "word vectors": ["model=word2vec_tiny", "stage/objective=skip_gram", "toy=true"],
    "n-grams": ["model=neural_ngram_tiny", "toy=true"],
    "mixture": ["model=mixtral_8x7b", "toy=true"],
    "parallel block, ALiBi": ["model=falcon_7b", "model/position=alibi", "toy=true"],
}


def make(case: str, folder: Path, *changes: str) -> Job:
    return job_of(CASES[case], folder, *changes)


def job_of(line: list[str], folder: Path, *changes: str) -> Job:
    return compose_job(
        [
            *line,
            *("data=text", f"data.source.files=[{write_text(folder)}]", "data.source.split_on=---", "data/tokenizer=bytes"),
            *("data.seq_len=48", "data.held_out=0.2", f"data.cache={folder}/cache", "data.workers=1", "precision=fp64"),
            *(
                "optim/schedule=constant",
                "optim.schedule.warmup_steps=0",
                "optim.lr=1e-3",
                "optim.clip_norm=0.05",
                "trainer.device=cpu",
            ),
            *("trainer.max_steps=3", "trainer.batch_size=6", "trainer.eval_every=null", "trainer.keep_best=false"),
            *("trainer.save_every=null", "trainer.sample=false", "trainer.log_every=1", "parallel.dp_replicate=null"),
            *changes,
        ]
    ).job


def train(job: Job, folder: Path) -> Steps:
    """Losses, norms and final weights."""
    tracker = Memory()
    data = read_data(job, None, job.stage.objective.specials())
    fitted = fit(job, data, folder, tracker, Notes())
    rows = tracker.rows.values()
    weights = {name: p.detach().clone() for name, p in fitted.model.named_parameters()}
    return [row["loss"] for row in rows], [row["grad_norm"] for row in rows], weights


def assert_same(ours: Steps, reference: Steps) -> None:
    assert len(reference[0]) == 3
    for one, other in zip(ours[0] + ours[1], reference[0] + reference[1], strict=True):
        assert one == pytest.approx(other, rel=1e-9)
    for name, weight in reference[2].items():
        # A bias of the keys has no gradient but rounding, so it stays at zero but for rounding.
        assert (ours[2][name] - weight).norm() <= 1e-9 * weight.norm() + 1e-12, name


@pytest.mark.dist
@pytest.mark.parametrize("case", CASES)
def test_the_same_steps(case: str, tmp_path: Path) -> None:
    reference = train(make(case, tmp_path), tmp_path / "whole")
    assert_same(train(make(case, tmp_path, "trainer.micro_batch_size=4"), tmp_path / "cut"), reference)
    for result in pool.run(2, train, make(case, tmp_path, "trainer.micro_batch_size=2"), tmp_path / "two"):
        assert_same(result, reference)
