"""What prefix and p_tuning_v2 add to a model, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmfactory.config.compose import compose_job
from llmfactory.core.context import CausalMask, Context
from llmfactory.model.declarations import declarations
from llmfactory.peft.prefix import LayerPrefix, PrefixNetwork
from llmfactory.peft.prompt_spec import PromptEncoder
from llmfactory.peft.spec import AdapterSpec, Prefix, PTuning, PTuningV2


def added(preset: str, spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of what a method adds to a small model, by name."""
    model = compose_job([f"model={preset}", "toy=true", "stage=describe"]).job.model.build()
    spec.apply(model)
    assert declarations(model)
    return {name: tuple(weight.shape) for name, weight in model.named_parameters() if name in model.added}


def test_shapes_of_keys_and_values() -> None:
    found = added("llama_tiny", PTuningV2(tokens=5))
    spec = compose_job(["model=llama_tiny", "toy=true", "stage=describe"]).job.model
    heads, width = spec.attention.n_kv_heads or spec.attention.n_heads, spec.attention.head_width(spec.dim)
    assert found == {
        f"blocks.{layer}.attention.adapters.default.{name}": (heads, 5, width)
        for layer in range(spec.n_layers)
        for name in ("keys", "values")
    }
    latent = added("deepseek_v2_lite", PTuningV2(tokens=5))
    spec = compose_job(["model=deepseek_v2_lite", "toy=true", "stage=describe"]).job.model
    attention: Any = spec.attention
    assert latent["blocks.0.attention.adapters.default.keys"] == (1, 5, attention.kv_lora_rank)
    assert latent["blocks.0.attention.adapters.default.values"] == (1, 5, attention.qk_rope_head_dim)


def test_every_setting_changes_what_is_added() -> None:
    plain = added("t5_small", Prefix(tokens=4, hidden=6))
    assert plain["decoder.adapters.default.embedding"][0] == 4
    assert plain["decoder.adapters.default.up.weight"][0] == 6
    assert added("t5_small", Prefix(tokens=5, hidden=6))["decoder.adapters.default.embedding"][0] == 5
    assert added("t5_small", Prefix(tokens=4, hidden=7))["decoder.adapters.default.up.weight"][0] == 7
    own = added("t5_small", PTuningV2(tokens=4))
    assert own == added("t5_small", Prefix(tokens=4, hidden=None))
    assert {name.split(".")[0] for name in plain} == {name.split(".")[0] for name in own} == {"decoder"}
    for both in (
        added("t5_small", Prefix(tokens=4, hidden=6, encoder=True)),
        added("t5_small", PTuningV2(tokens=4, encoder=True)),
    ):
        assert {name.split(".")[0] for name in both} == {"decoder", "encoder"}
        assert not any(".cross." in name for name in both)
    for crossed in (
        added("t5_small", Prefix(tokens=4, hidden=6, cross=True)),
        added("t5_small", PTuningV2(tokens=4, cross=True)),
    ):
        assert {name.split(".")[0] for name in crossed} == {"decoder"}
        assert any(".cross." in name for name in crossed)


def test_every_setting_changes_the_network_of_virtual_tokens() -> None:
    lstm = PromptEncoder.lstm
    start = "embedding.adapters.default."
    assert added("gpt2_tiny", PTuning(tokens=4))[f"{start}embedding"][0] == 4
    assert added("gpt2_tiny", PTuning(hidden=9))[f"{start}up.weight"][0] == 9
    width = added("gpt2_tiny", PTuning())[f"{start}embedding"][1]
    assert added("gpt2_tiny", PTuning())[f"{start}up.weight"] == (width, width)
    assert added("gpt2_tiny", PTuning(encoder=lstm, hidden=9))[f"{start}0_forwards_x"] == (36, width)
    deep = added("gpt2_tiny", PTuning(encoder=lstm, hidden=9, layers=3))
    assert deep[f"{start}2_backwards_x"] == (36, 18)
    assert f"{start}3_forwards_x" not in deep


def test_prefixes_stand_one_behind_the_other() -> None:
    """As one prefix of both."""
    spec = compose_job(["model=llama_tiny", "toy=true", "stage=describe"]).job.model
    one, two = spec.build().eval(), spec.build().eval()
    PTuningV2(tokens=5).apply(one)
    PTuningV2(tokens=2).apply(two, "first")
    PTuningV2(tokens=3).apply(two, "second")
    with torch.no_grad():
        for weight in one.parameters():
            weight.normal_(0, 0.3)
        state = dict(one.state_dict())
        for name in list(one.added):
            both, path = state.pop(name), name.replace("default", "{}")
            state |= {path.format("first"): both[:, :2], path.format("second"): both[:, 2:]}
        two.load_state_dict(state)
        tokens, context = torch.randint(0, 60, (2, 6)), Context(torch.arange(6).expand(2, 6), CausalMask(6))
        torch.testing.assert_close(two(tokens, context), one(tokens, context))
    assert (one.preceding, two.preceding) == (5, 5)


@pytest.mark.parametrize("preset", ["lstm_tiny", "xlnet_base", "word2vec_tiny"])
def test_models_without_a_place(preset: str) -> None:
    with pytest.raises(TypeError, match="no keys and values"):
        added(preset, PTuningV2())


def test_nothing_is_added_twice() -> None:
    model = compose_job(["model=gpt2_tiny", "toy=true", "stage=describe"]).job.model.build()
    Prefix(hidden=4).apply(model)
    with pytest.raises(ValueError, match="already"):
        Prefix(hidden=4).apply(model)
    assert sum(isinstance(module, PrefixNetwork) for module in model.modules()) == 1
    assert sum(isinstance(module, LayerPrefix) for module in model.modules()) == len(model.blocks)
