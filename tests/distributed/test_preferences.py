"""Preferences are learned by the same optimizer steps however rows and models are shared out, wherever the reference comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pool
import pytest
from preferred import Steps, assert_same, preference_job, train

from llmfactory.config.spec import Job
from llmfactory.model.head.spec import Pooling, Scalar
from llmfactory.objective.preference_spec import Dpo, Kto, Orpo, Reference, Rrhf
from llmfactory.objective.reward_spec import BradleyTerry
from llmfactory.parallel.spec import ContextMethod, Mesh, Zero
from llmfactory.peft.spec import Lora
from llmfactory.stage.spec import Preference, Reward

DPO, KTO = Dpo(beta=0.5), Kto(beta=0.5, unwanted=0.7)
GIVEN = Reference.precomputed
CASES: dict[str, dict[str, Any]] = {
    "dpo": {"objective": DPO},
    "dpo, asked before": {"objective": DPO, "reference": GIVEN},
    "dpo, adapters": {"objective": DPO, "peft": Lora(rank=2)},
    "kto": {"objective": KTO},
    "kto, asked before": {"objective": KTO, "reference": GIVEN},
    "dpo, shared prompts": {"objective": DPO, "stage": Preference(objective=DPO, reference=GIVEN, shared_prompt=True)},
    "rewards, shared prompts": {
        "objective": BradleyTerry(),
        "stage": Reward(objective=BradleyTerry(), shared_prompt=True),
        "model__head": Scalar(pooling=Pooling.last),
    },
    "orpo": {"objective": Orpo()},
    "rrhf": {"objective": Rrhf()},
}
COPIES, SHARDS = Mesh(dp_replicate=None), Mesh(dp_shard=None, zero=Zero.parameters)
TENSORS = Mesh(tp=2, loss_parallel=True)
PIECES, STAGES = Mesh(cp=2), Mesh(pp=2)
LAYOUTS: list[tuple[str, Mesh, int | None]] = [
    ("dpo", COPIES, 3),
    ("dpo", SHARDS, None),
    ("dpo", TENSORS, None),
    ("dpo", PIECES, 4),
    ("dpo, asked before", STAGES, 4),
    ("dpo, asked before", PIECES, None),
    ("dpo, shared prompts", SHARDS, 3),
    ("dpo, shared prompts", TENSORS, None),
    ("dpo, shared prompts", STAGES, 4),
    ("rewards, shared prompts", SHARDS, None),
    ("dpo, adapters", SHARDS, 3),
    ("dpo, adapters", TENSORS, None),
    ("kto", COPIES, 2),
    ("kto", SHARDS, 3),
    ("kto", TENSORS, 4),
    ("kto", Mesh(cp=2, context_method=ContextMethod.gather), None),
    ("kto, asked before", COPIES, 2),
    ("orpo", STAGES, 4),
    ("orpo", TENSORS, None),
    ("rrhf", COPIES, 3),
]


def make(folder: Path, case: str, layout: Mesh | None = None, micro: int | None = None) -> Job:
    changes = {} if layout is None else {"parallel": layout, "trainer__micro_batch_size": micro}
    return preference_job(folder, **CASES[case], **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("same")


@pytest.fixture(scope="module")
def references(folder: Path) -> dict[str, Steps]:
    return {}


def alone(references: dict[str, Steps], folder: Path, case: str) -> Steps:
    """One process, the whole batch at once."""
    if case not in references:
        references[case] = train(make(folder, case), folder / f"{case} alone")
    return references[case]


@pytest.mark.parametrize("case", ["dpo", "kto", "orpo", "rrhf"])
def test_micro_batches(case: str, folder: Path, references: dict[str, Steps], tmp_path: Path) -> None:
    cut = train(preference_job(folder, **CASES[case], trainer__micro_batch_size=3), tmp_path)
    assert_same(cut, alone(references, folder, case))


@pytest.mark.dist
@pytest.mark.parametrize(
    ("case", "layout", "micro"), LAYOUTS, ids=[f"{case} {number}" for number, (case, _, _) in enumerate(LAYOUTS)]
)
def test_layouts(case: str, layout: Mesh, micro: int | None, folder: Path, references: dict[str, Steps], tmp_path: Path) -> None:
    for result in pool.run(2, train, make(folder, case, layout, micro), tmp_path):
        assert_same(result, alone(references, folder, case))
