"""Adapters beside linear maps next to those of `peft`, with the same weights: logits and all gradients in float64."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import IA3Config, LoraConfig, get_peft_model

from llmfactory.parallel.mesh import World
from llmfactory.peft.active import choose, without_adapters
from llmfactory.peft.base_spec import AdapterSpec
from llmfactory.peft.merge import merge
from llmfactory.peft.spec import Dora, Ia3, Lora

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]

MAPS = {
    **{f"self_attn.{name}_proj": f"attention.{name}" for name in "qkv"},
    "self_attn.out_proj": "attention.o",
    "fc1": "ffn.up",
    "fc2": "ffn.down",
}
TENSORS = {
    "lora_A.default.weight": "a",
    "lora_B.default.weight": "b",
    "lora_magnitude_vector.default.weight": "magnitude",
    "ia3_l.default": "scale",
}
ALL = [old.rpartition(".")[2] for old in MAPS]
METHODS: dict[str, tuple[AdapterSpec, Any]] = {
    "lora": (Lora(rank=4, alpha=12), LoraConfig(r=4, lora_alpha=12, target_modules=ALL)),
    "lora of some": (
        Lora(rank=2, alpha=3, targets=["q", "attention.v", "re:blocks[.]1[.].*down"]),
        LoraConfig(r=2, lora_alpha=3, target_modules=r".*(q_proj|v_proj|layers\.1\.fc2)"),
    ),
    "rank stabilized": (
        Lora(rank=4, alpha=6, rank_stabilized=True),
        LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=ALL),
    ),
    "dora": (Dora(rank=4, alpha=12), LoraConfig(r=4, lora_alpha=12, use_dora=True, target_modules=ALL)),
    "ia3": (
        Ia3(),
        IA3Config(target_modules=["k_proj", "v_proj", "fc2"], feedforward_modules=["fc2"]),
    ),
}


@pytest.fixture
def models(make_pair: Any) -> tuple[Any, Any]:
    """A model with biases, all of which is computed in the format of its weights."""
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"vocab_size": 31, "hidden_size": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = OPTConfig(**sizes, ffn_dim=24, max_position_embeddings=24, dropout=0.0, attn_implementation="sdpa")
    pair = make_pair(OPTForCausalLM(config))
    return pair.ours.double(), pair.theirs.double()


def our_name(theirs: str) -> str:
    found = re.fullmatch(r"base_model\.model\.model\.decoder\.layers\.(\d+)\.(.*?(?:_proj|fc1|fc2))\.(.*)", theirs)
    assert found is not None, theirs
    return f"blocks.{found[1]}.{MAPS[found[2]]}.adapters.default.{TENSORS[found[3]]}"


def trained(theirs: Any) -> dict[str, torch.nn.Parameter]:
    return {our_name(name): parameter for name, parameter in theirs.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("method", METHODS)
def test_the_same_function_and_gradients(method: str, models: tuple[Any, Any]) -> None:
    spec, config = METHODS[method]
    ours, theirs = models
    tokens = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(0))
    before = theirs(tokens).logits
    spec.apply(ours)
    ours.double()
    theirs = get_peft_model(theirs, config).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.requires_grad:
                parameter.zero_()  # whatever the base does not decide comes from theirs
    spec.begin(ours, World(torch.device("cpu")))
    own = {name: parameter for name, parameter in ours.named_parameters() if parameter.requires_grad}
    both = trained(theirs)
    assert own.keys() == both.keys()
    with torch.no_grad():
        for number, (name, parameter) in enumerate(both.items()):
            generator = torch.Generator().manual_seed(number)
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            own[name].copy_(parameter.view_as(own[name]))
    batch = {"tokens": tokens, "positions": torch.arange(9).expand(2, 9), "segments": torch.ones_like(tokens)}

    def logits() -> torch.Tensor:
        return ours.head(ours(tokens, ours.context(batch)))

    mine, other = logits(), theirs(tokens).logits
    assert (mine - before).abs().max() > 1e-3
    torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)
    for found in (mine, other):
        F.cross_entropy(found[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for name, parameter in both.items():
        torch.testing.assert_close(own[name].grad, parameter.grad.view_as(own[name]), rtol=1e-8, atol=1e-12)
    assert all(parameter.grad is None for name, parameter in ours.named_parameters() if name not in own)
    with without_adapters(ours):
        torch.testing.assert_close(logits(), before, rtol=1e-10, atol=1e-10)
    merge(ours)
    torch.testing.assert_close(logits(), mine, rtol=1e-10, atol=1e-10)
    theirs = theirs.merge_and_unload()
    torch.testing.assert_close(logits(), theirs(tokens).logits, rtol=1e-10, atol=1e-10)


def test_several_adapters_add_up_and_are_chosen(models: tuple[Any, Any]) -> None:
    ours, theirs = models
    tokens = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(0))
    config = LoraConfig(r=2, lora_alpha=3, target_modules=ALL, init_lora_weights=False)
    theirs = get_peft_model(theirs, config).double()
    theirs.add_adapter("second", config)
    theirs.double()
    for name in ("default", "second"):
        Lora(rank=2, alpha=3).apply(ours, name)
    ours.double()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            for adapter in ("default", "second"):
                if f".{adapter}.weight" in name:
                    own = our_name(name.replace(f".{adapter}.", ".default.")).replace(".default.", f".{adapter}.")
                    ours.get_parameter(own).copy_(parameter)
    batch = {"tokens": tokens, "positions": torch.arange(9).expand(2, 9), "segments": torch.ones_like(tokens)}
    for chosen in (["default"], ["second"], ["default", "second"], []):
        choose(ours, chosen)
        if chosen:
            theirs.base_model.set_adapter(chosen)
        with torch.no_grad():
            mine = ours.head(ours(tokens, ours.context(batch)))
            if chosen:
                other = theirs(tokens).logits
            else:
                with theirs.disable_adapter():
                    other = theirs(tokens).logits
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)
