"""A profile wraps the stage that the rest of a command picks, in sweeps too."""

from __future__ import annotations

import pytest

from llmfactory.config.compose import compose_job
from llmfactory.config.profiled import for_hydra
from llmfactory.stage.spec import Pretrain, Profile


@pytest.mark.parametrize(
    ("told", "handed"),
    [
        (["optim.lr=1,2", "stage=profile"], ["optim.lr=1,2"]),
        (["stage=profile", "++stage.measured=3,4"], ["++stage.measured=3,4"]),
        (["stage=profile", "++stage.of=sft", "++stage.of.objective.z_loss=1"], ["stage=sft", "++stage.objective.z_loss=1"]),
        (
            ["stage=pretrain", "stage/objective=causal,prefix", "stage=profile"],
            ["stage=pretrain", "stage/objective=causal,prefix"],
        ),
    ],
)
def test_hydra_is_handed_what_is_profiled(told: list[str], handed: list[str]) -> None:
    assert for_hydra(told) == (handed, ("stage=profile",))


@pytest.mark.parametrize("told", [[], ["optim.lr=1,2"], ["stage=profile", "stage=sft"], ["stage=pretrain,profile"]])
def test_what_is_not_profiled_is_left_alone(told: list[str]) -> None:
    assert for_hydra(told) == (told, ())


def test_what_a_member_composes_is_the_profile_of_what_was_handed() -> None:
    handed, behind = for_hydra(["stage.of=pretrain", "stage.of.objective.z_loss=0.5", "stage=profile", "stage.measured=4"])
    stage = compose_job([*handed, *behind]).job.stage
    assert isinstance(stage, Profile)
    assert isinstance(stage.of, Pretrain)
    assert (stage.of.objective.z_loss, stage.measured) == (0.5, 4)  # type: ignore[attr-defined]
