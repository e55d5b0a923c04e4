from __future__ import annotations

import pytest
import torch
from plain_model import LLAMA, MOE, filled, logits, moved

from llmfactory.core.errors import UserError
from llmfactory.peft.active import base_stays, choose, has_adapters, without_adapters
from llmfactory.peft.part import adapters
from llmfactory.peft.spec import Freeze, Lora


@pytest.mark.parametrize("overrides", [LLAMA, MOE])
def test_without_adapters_the_model_is_its_base(overrides: list[str]) -> None:
    before, model = logits(filled(overrides)), moved(filled(overrides, Lora(rank=2)))
    adapted = logits(model)
    with without_adapters(model):
        torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    torch.testing.assert_close(logits(model), adapted, rtol=0, atol=0)
    assert has_adapters(model)


def test_one_that_was_off_stays_off() -> None:
    model = moved(filled(LLAMA, Lora(rank=2), ("one", "two")))
    choose(model, ["two"])
    assert {adapter.name for _, adapter in adapters(model) if adapter.active} == {"two"}
    only = logits(model)
    with without_adapters(model):
        pass
    torch.testing.assert_close(logits(model), only, rtol=0, atol=0)
    with pytest.raises(UserError, match="no adapter called three: there are one, two"):
        choose(model, ["one", "three"])


def test_a_base_that_learns_is_none() -> None:
    assert not base_stays(filled(LLAMA))
    for spec in (Lora(train=["norm"]), Freeze(last_layers=1)):
        model = filled(LLAMA, spec)
        assert not base_stays(model)
        with pytest.raises(ValueError, match="have changed"), without_adapters(model):
            pass
