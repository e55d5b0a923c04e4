from __future__ import annotations

import pytest
import torch
from plain_model import GPT2, LLAMA, MOE, filled, logits, moved, trained

from llmfactory.core.errors import UserError
from llmfactory.peft.spec import Ia3


def test_keys_values_and_inner_activations() -> None:
    model = filled(GPT2, Ia3())
    torch.testing.assert_close(logits(model), logits(filled(GPT2)), rtol=0, atol=0)
    assert {name.partition(".adapters")[0] for name in trained(model)} == {
        f"blocks.{layer}.{name}" for layer in (0, 1) for name in ("attention.k", "attention.v", "ffn.down")
    }


def test_outputs_with_their_bias_and_inputs() -> None:
    model = moved(filled(GPT2, Ia3(outputs=["q"], inputs=["up"])))
    x = torch.randn(5, 12, dtype=torch.float64)
    for path, inputs in (("blocks.0.attention.q", False), ("blocks.0.ffn.up", True)):
        linear = model.get_submodule(path)
        scale = model.get_parameter(f"{path}.adapters.default.scale")
        with torch.no_grad():
            linear.bias.normal_()
        y = (x * scale if inputs else x) @ linear.weight.T + linear.bias
        torch.testing.assert_close(linear(x), y if inputs else y * scale, rtol=1e-12, atol=1e-12)


def test_what_there_is_none_of() -> None:
    assert {name.partition(".adapters")[0] for name in trained(filled(LLAMA, Ia3(inputs=[], outputs=["v"])))} == {
        "blocks.0.attention.v",
        "blocks.1.attention.v",
    }
    with pytest.raises(UserError, match=r"peft\.inputs"):
        filled(MOE, Ia3())
    with pytest.raises(UserError, match=r"no linear map is called value; there are blocks\.\*\.attention\.q"):
        filled(LLAMA, Ia3(outputs=["value"]))
    with pytest.raises(ValueError, match="nothing would be trained"):
        Ia3(outputs=[], inputs=[])
