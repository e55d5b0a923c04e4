"""Answers as branches behind one prompt: the same loss and gradients as documents of their own, for less work."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from preferred import preference_job
from toy_job import filled, prepared

from llmfactory.config.spec import Job
from llmfactory.core.batch import IGNORE
from llmfactory.core.context import BranchMask
from llmfactory.data.form.shared_prompt import SharedPromptRows, branched, in_common
from llmfactory.data.pack.rows import shares
from llmfactory.data.pack.spec import Document, Grouped, PackSpec
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.head.spec import Pooling, Scalar
from llmfactory.model.position.spec import Alibi, Learned, None_, PositionSpec, Rope, Sinusoidal, T5Bias
from llmfactory.objective.preference_spec import Dpo, Orpo, PreferenceSpec, Rrhf
from llmfactory.objective.reward_spec import BradleyTerry, Ranking, RewardSpec
from llmfactory.run.fit import build_stage
from llmfactory.stage.rows import task_rows
from llmfactory.stage.spec import Preference, Reward

POSITIONS = [Rope(), Learned(), Alibi(), T5Bias(n_buckets=8, max_distance=20), Sinusoidal(), None_()]


def gradients(job: Job) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], int]:
    """Of the first eight training rows: sums, gradients, places in the rows."""
    objective = job.stage.trained(job)  # type: ignore[attr-defined]
    rows = task_rows(job, objective, prepared(job), "train")
    stage = filled(build_stage(job, rows.isolated))
    batch = rows.read(np.arange(8))
    sums = stage.root(batch)
    sum(sums[name] for name in objective.terms).backward()
    found = {name: p.grad.clone() for name, p in stage.model.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in sums.items()}, found, batch["tokens"].numel()


def both(job: Job) -> tuple[Job, Job]:
    assert isinstance(job.stage, Preference)
    return job, replace(job, stage=replace(job.stage, shared_prompt=True))


@pytest.mark.parametrize("position", POSITIONS, ids=lambda one: type(one).__name__)
def test_it_equals_documents_of_their_own(position: PositionSpec, tmp_path: Path) -> None:
    apart, shared = (gradients(job) for job in both(preference_job(tmp_path, Dpo(beta=0.5), model__position=position)))
    same(apart, shared)


@pytest.mark.parametrize("objective", [Ranking(), BradleyTerry(margin_scale=0.5)], ids=["ranking", "bradley_terry"])
def test_rewards_of_answers_that_share_their_prompt(objective: RewardSpec, tmp_path: Path) -> None:
    stages = (Reward(objective=objective, shared_prompt=shared) for shared in (False, True))
    head = Scalar(pooling=Pooling.last)
    jobs = (preference_job(tmp_path, objective, stage=stage, model__head=head) for stage in stages)  # type: ignore[arg-type]
    apart, shared = (gradients(job) for job in jobs)
    same(apart, shared)


@pytest.mark.parametrize("objective", [Orpo(), Rrhf()], ids=["orpo", "rrhf"])
def test_other_objectives(objective: PreferenceSpec, tmp_path: Path) -> None:
    same(*(gradients(job) for job in both(preference_job(tmp_path, objective))))


def test_a_window_counts_positions(tmp_path: Path) -> None:
    job = preference_job(tmp_path, Dpo(), model__attention=Gqa(n_heads=4, n_kv_heads=2, window=6))
    same(*(gradients(one) for one in both(job)))


def test_rows_get_shorter(tmp_path: Path) -> None:
    """Where they are as long as the longest of their batch."""
    job = preference_job(tmp_path, Dpo(), data__pack=Grouped(multiple=1))
    apart, shared = (gradients(one) for one in both(job))
    same(apart, shared)
    assert shared[2] < 0.8 * apart[2]
    rows = task_rows(both(job)[1], job.stage.trained(job), prepared(job), "train")  # type: ignore[attr-defined]
    assert isinstance(rows, SharedPromptRows)
    for number in range(len(rows)):
        batch = rows.read(np.array([number]))
        assert batch["tokens"].shape[1] == int((batch["segments"] > 0).sum())


def same(
    apart: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], int],
    shared: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], int],
) -> None:
    assert apart[0].keys() == shared[0].keys()
    for name, value in apart[0].items():
        torch.testing.assert_close(shared[0][name], value, rtol=1e-9, atol=1e-12)
    assert apart[1].keys() == shared[1].keys()
    for name, grad in apart[1].items():
        assert (shared[1][name] - grad).norm() <= 1e-9 * grad.norm() + 1e-12, name


X = IGNORE


def test_a_row_by_hand() -> None:
    rows = {
        "tokens": torch.tensor([[0, 5, 6, 1, 2, 0, 5, 6, 3, 9, 9], [0, 5, 7, 9, 9, 9, 9, 9, 9, 9, 9]]),
        "labels": torch.tensor([[X, X, 1, 2, 9, X, X, 3, 9, X, X], [X, 7, 9, X, X, X, X, X, X, X, X]]),
        "segments": torch.tensor([[1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]]),
    }
    found = branched(rows, 8, end_id=9)
    assert found["tokens"].tolist() == [[0, 5, 6, 1, 2, 6, 3, 9], [0, 5, 7, 9, 9, 9, 9, 9]]
    assert found["labels"].tolist() == [[X, X, 1, 2, 9, 3, 9, X], [X, 7, 9, X, X, X, X, X]]
    assert found["positions"].tolist() == [[0, 1, 2, 3, 4, 2, 3, 0], [0, 1, 2, 0, 0, 0, 0, 0]]
    assert found["branches"].tolist() == [[0, 0, 1, 1, 1, 2, 2, 0], [0, 1, 1, 0, 0, 0, 0, 0]]
    assert found["segments"].tolist() == [[1, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0, 0, 0]]


def test_prompts_that_differ_share_what_is_equal() -> None:
    """A tokenizer may join the end of a prompt with the beginning of an answer."""
    one, other = np.array([0, 5, 6, 1]), np.array([0, 5, 8, 1])
    learned = np.array([False, False, True, True])
    assert in_common([(one, learned), (other, learned)]) == 2
    assert in_common([(one, learned), (one, learned)]) == 2
    assert in_common([(one, learned), (np.array([7, 5, 6]), learned[:3])]) == 0


def test_who_sees_whom() -> None:
    segments, branches = torch.tensor([[1, 1, 1, 1, 1, 0]]), torch.tensor([[0, 1, 1, 2, 2, 0]])
    mask = BranchMask(segments, branches, torch.tensor([[0, 1, 2, 1, 2, 0]]))
    seen = mask.dense()
    assert seen is not None
    assert seen[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    near = mask.dense(2)
    assert near is not None
    assert near[0, 0, 4].tolist() == [False, False, False, True, True, False]
    assert near[0, 0, 3].tolist() == [True, False, False, True, False, False]
    for window in (None, 2):
        whole = mask.dense(window)
        assert whole is not None
        for queries in (slice(1, 4), slice(3, 6)):
            keys = mask.reach(queries, window)
            tile = mask.tile(queries, slice(keys.start, keys.stop)).dense(window)
            assert torch.equal(tile, whole[..., queries, keys])  # type: ignore[arg-type]
            assert not whole[..., queries, keys.stop :].any()


@pytest.mark.parametrize("pack", [Document(), Grouped(group=8, multiple=4)], ids=["document", "grouped"])
@pytest.mark.parametrize("objective", [Dpo(), Rrhf()], ids=["pairs", "rankings"])
def test_the_figure_of_padding_counts_a_shared_prompt_once(pack: PackSpec, objective: PreferenceSpec, tmp_path: Path) -> None:
    """What batches of whole groups hold, row by row; apart it is what it was."""
    for job in both(preference_job(tmp_path, objective, data__pack=pack)):
        rows = task_rows(job, job.stage.trained(job), prepared(job), "train")  # type: ignore[attr-defined]
        read = [rows.read(np.arange(low, min(low + 8, len(rows))))["segments"] for low in range(0, len(rows), 8)]
        real, places = sum(int((one > 0).sum()) for one in read), sum(one.numel() for one in read)
        assert shares(rows)["padding"] == pytest.approx(1 - real / places)
