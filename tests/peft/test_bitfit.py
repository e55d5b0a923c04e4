from __future__ import annotations

import pytest
from plain_model import GPT2, LLAMA, filled, trained

from llmfactory.core.errors import UserError
from llmfactory.peft.active import base_stays
from llmfactory.peft.spec import Bitfit


def test_biases_alone() -> None:
    model = filled(GPT2, Bitfit())
    names = {name for name, _ in model.named_parameters()}
    assert trained(model) == {name for name in names if name.endswith(".bias")}
    assert model.added == set()
    assert model.borrowed == names - trained(model)
    assert not base_stays(model)


def test_a_model_without() -> None:
    with pytest.raises(UserError, match="peft=lora"):
        filled(LLAMA, Bitfit())
