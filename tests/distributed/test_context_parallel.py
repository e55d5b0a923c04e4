"""Rows cut along their length: loss, norm, held-out loss and weights of one process with whole rows, in float64.

Decoders of packed and padded rows, windows, biases of scores, positions of two axes, scaled positions, distances, experts,
encoders, encoder-decoders (whose rows have two lengths, one of them padded before it is cut), two streams, vectors of words.
"""

from __future__ import annotations

from pathlib import Path

import pool
import pytest
import torch
from test_every_graph import CASES as GRAPHS
from test_every_graph import job_of
from toy_job import Memory, Notes

from llmfactory.config.spec import Job
from llmfactory.run.fit import fit
from llmfactory.stage.rows import read_data

Numbers = tuple[list[float], dict[str, torch.Tensor]]
LLAMA = ["model=llama_tiny", "toy=true"]
SCALED = ["model/position/scaling=dynamic_ntk", "model.position.scaling.factor=4", "model.position.scaling.trained_positions=16"]
CASES: dict[str, list[str]] = {
    "packed": LLAMA,
    "padded, scaled positions": [*LLAMA, "data/pack=document", *SCALED],
    "one text a row": [*LLAMA, "data.pack.isolate=false"],
    "windows": ["model=gemma2_2b", "toy=true"],
    "ALiBi, one key head": GRAPHS["parallel block, ALiBi"],
    "latent": [*LLAMA, "model/attention=mla"],
    "distances": [*LLAMA, "model/attention=relative", "model/position=relative"],
    "experts": [*GRAPHS["mixture"], "model.ffn.balance=0.1", "model.ffn.z=0.01"],
    "experts with a capacity": [
        *(*LLAMA, "model/ffn=switch", "model.ffn.capacity_factor=1.0", "model.ffn.balance=0.1", "model.ffn.balance_over=batch"),
    ],
    "multimodal": ["model=llava_1_5_7b", "toy=true"],
    "encoder": [*GRAPHS["encoder"], "toy=true"],
    "replaced tokens": GRAPHS["replaced tokens"],
    "T5": GRAPHS["encoder-decoder"],
    "BART": GRAPHS["denoising"],
    "prefix": [*LLAMA, "stage/objective=prefix"],
    "blanks": GRAPHS["blanks"],
    "two streams": GRAPHS["two streams"],
    "word vectors": GRAPHS["word vectors"],
}
RING, ULYSSES, GATHER = (f"parallel.context_method={name}" for name in ("ring", "ulysses", "gather"))
PAIR: dict[str, list[list[str]]] = {
    "packed": [[RING], [ULYSSES], [GATHER], [RING, "parallel.recompute=true", "trainer.micro_batch_size=4"]],
    "padded, scaled positions": [[RING]],
    "one text a row": [[RING]],
    "windows": [[RING], [GATHER]],
    "ALiBi, one key head": [[RING], [GATHER]],
    "latent": [[ULYSSES]],
    "distances": [[RING], [GATHER]],
    "experts": [[RING]],
    "experts with a capacity": [[GATHER]],
    "multimodal": [[RING]],
    "encoder": [[ULYSSES]],
    "replaced tokens": [[RING]],
    "T5": [[RING], [ULYSSES], [GATHER]],
    "BART": [[GATHER]],
    "prefix": [[ULYSSES]],
    "blanks": [[RING]],
    "two streams": [[RING], [ULYSSES]],
    "word vectors": [[RING]],
}
"""With rows in two pieces on two processes."""
FOUR: dict[str, list[list[str]]] = {
    "packed": [
        ["parallel.cp=4", RING],
        ["parallel.cp=4", ULYSSES],
        ["parallel.cp=2", GATHER, "parallel.dp_replicate=1", "parallel.dp_shard=2", "trainer.micro_batch_size=2"],
        ["parallel.cp=2", RING, "parallel.tp=2"],
        ["parallel.cp=2", RING, "parallel.pp=2", "parallel.dp_replicate=1", "trainer.micro_batch_size=1"],
        ["parallel.cp=2", ULYSSES, "parallel.tp=2", "parallel.sequence_parallel=true"],
    ],
    "T5": [["parallel.cp=4", RING], ["parallel.cp=2", ULYSSES, "parallel.tp=2"]],
    "experts": [["parallel.cp=2", GATHER, "parallel.dp_replicate=2"]],
}
"""Four processes."""
RUNS = [(case, ("parallel.cp=2", *changes), 2) for case, choices in PAIR.items() for changes in choices] + [
    (case, tuple(changes), 4) for case, choices in FOUR.items() for changes in choices
]


def make(case: str, folder: Path, *changes: str) -> Job:
    return job_of(CASES[case], folder, "trainer.eval_every=3", "trainer.eval_rows=8", *changes)


def train(job: Job, folder: Path) -> Numbers:
    """Losses, norms and held-out losses; final weights."""
    tracker = Memory()
    fitted = fit(job, read_data(job, None, job.stage.objective.specials()), folder, tracker, Notes())
    names = ("loss", "grad_norm", "held_out_loss")
    found = [row[name] for row in tracker.rows.values() for name in names if name in row]
    return found, {name: p.detach().clone() for name, p in fitted.model.named_parameters()}


def all_of(jobs: list[Job], folder: Path) -> list[Numbers]:
    return [train(job, folder / str(number)) for number, job in enumerate(jobs)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, tuple[str, ...], int], list[Numbers]]:
    """What the processes of each run found."""
    folder = tmp_path_factory.mktemp("pieces")
    results = {}
    for world in (2, 4):
        runs = [run for run in RUNS if run[2] == world]
        launch = ("launch=local", f"launch.processes={world}")
        jobs = [make(case, folder, *changes, *launch) for case, changes, _ in runs]
        ranks = pool.run(world, all_of, jobs, folder / f"on_{world}")
        results |= {run: [rank[number] for rank in ranks] for number, run in enumerate(runs)}
    return results


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Numbers]:
    """What one process finds, by case."""
    folder = tmp_path_factory.mktemp("whole")
    return {case: train(make(case, folder), folder / case) for case in CASES}


@pytest.mark.dist
@pytest.mark.parametrize("run", RUNS, ids=[f"{world} {case}: {' '.join(changes)}" for case, changes, world in RUNS])
def test_the_same_steps(
    run: tuple[str, tuple[str, ...], int],
    found: dict[tuple[str, tuple[str, ...], int], list[Numbers]],
    whole: dict[str, Numbers],
) -> None:
    numbers, weights = whole[run[0]]
    assert len(numbers) == 7
    for ours, our_weights in found[run]:
        assert ours == pytest.approx(numbers, rel=1e-9)
        for name, weight in weights.items():
            # A bias of the keys has no gradient but rounding, so it stays at zero but for rounding.
            assert (our_weights[name] - weight).norm() <= 1e-9 * weight.norm() + 1e-10, name


def test_every_case_is_cut() -> None:
    assert PAIR.keys() == CASES.keys()
