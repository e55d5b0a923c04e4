from __future__ import annotations

import pytest
from plain_model import GPT2, filled, trained

from llmfactory.core.errors import UserError
from llmfactory.peft.spec import Freeze, Lora


def test_the_last_layers() -> None:
    model = filled(GPT2, Freeze(last_layers=1))
    assert trained(model) == {name for name, _ in model.named_parameters() if name.startswith("blocks.1.")}
    assert model.borrowed == {name for name, _ in model.named_parameters()} - trained(model)
    with pytest.raises(UserError, match="has 2 layers"):
        filled(GPT2, Freeze(last_layers=3))


def test_patterns_name_parameters_or_what_holds_them() -> None:
    assert trained(filled(GPT2, Freeze(train=["norm.weight"]))) == {"norm.weight"}
    assert trained(filled(GPT2, Freeze(train=["blocks.0", "norm"]))) == {
        name for name, _ in filled(GPT2).named_parameters() if name.startswith(("blocks.0.", "norm."))
    }
    with pytest.raises(UserError, match=r"no parameter is called nrom; there are embedding\.weight"):
        filled(GPT2, Freeze(train=["nrom"]))
    with pytest.raises(ValueError, match="nothing would be trained"):
        Freeze()


def test_parameters_beside_adapters() -> None:
    model = filled(GPT2, Lora(train=["re:.*norm[.]bias"]))
    own = {name for name in trained(model) if ".adapters." not in name}
    assert own == {name for name, _ in model.named_parameters() if name.endswith("norm.bias")}
    assert not own & (model.added | model.borrowed)
