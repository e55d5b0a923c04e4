from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import nn
from toy_job import toy_job

from llmfactory.peft.spec import None_, PeftSpec
from llmfactory.run.fit import build_stage


def test_every_parameter_is_trained(tmp_path: Path) -> None:
    model = toy_job(tmp_path).model.build()
    model.requires_grad_(False)
    None_().apply(model)
    assert all(weight.requires_grad for weight in model.parameters())


@dataclass(kw_only=True, slots=True)
class NormsOnly(PeftSpec):
    """A method of the test's own."""

    def apply(self, model: nn.Module) -> None:
        for name, weight in model.named_parameters():
            weight.requires_grad_("norm" in name)


def test_training_asks_the_method_what_to_train(tmp_path: Path) -> None:
    stage = build_stage(toy_job(tmp_path, peft=NormsOnly()), isolated=True)
    trained = {name for group in stage.configure_optimizers().param_groups for name in map(id, group["params"])}
    assert trained == {id(weight) for name, weight in stage.model.named_parameters() if "norm" in name}


def test_a_base_is_no_method() -> None:
    with pytest.raises(TypeError, match="pick an option of peft"):
        PeftSpec().apply(nn.Linear(1, 1))
