from __future__ import annotations

import pytest
import torch
from plain_model import GPT2, MOE, filled, logits, moved

from llmfactory.peft.base_spec import AdapterSpec
from llmfactory.peft.lora_spec import Start
from llmfactory.peft.merge import merge, unmerge
from llmfactory.peft.spec import Dora, Ia3, Lora

METHODS = {
    "lora": (GPT2, Lora(rank=3)),
    "experts": (MOE, Lora(rank=3)),
    "pissa": (GPT2, Lora(rank=3, start=Start.pissa)),
    "dora": (GPT2, Dora(rank=3)),
    "ia3": (GPT2, Ia3(outputs=["k", "v", "q"])),
}


@pytest.mark.parametrize("method", METHODS)
def test_into_the_weights_and_out_again(method: str) -> None:
    overrides, spec = METHODS[method]
    assert isinstance(spec, AdapterSpec)
    model = moved(filled(overrides, spec))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(3))
    adapted = logits(model)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    merge(model)
    changed = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    assert changed
    torch.testing.assert_close(logits(model), adapted, rtol=1e-10, atol=1e-12)
    unmerge(model)
    torch.testing.assert_close(logits(model), adapted, rtol=1e-10, atol=1e-12)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("spec", [Lora(rank=2), Dora(rank=2), Ia3()], ids=["lora", "dora", "ia3"])
def test_two_at_once(spec: AdapterSpec) -> None:
    model = filled(GPT2, spec, ("one", "two"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".adapters." in name)  # the first one too, which is not trained beside the second
    moved(model)
    adapted, before = logits(model), {name: parameter.clone() for name, parameter in model.named_parameters()}
    merge(model)
    torch.testing.assert_close(logits(model), adapted, rtol=1e-10, atol=1e-12)
    unmerge(model)
    torch.testing.assert_close(logits(model), adapted, rtol=1e-10, atol=1e-12)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=1e-10, atol=1e-13)
