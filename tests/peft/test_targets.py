from __future__ import annotations

import pytest
from plain_model import LLAMA, MOE, filled

from llmfactory.core.errors import UserError
from llmfactory.peft.targets import linear_maps, matches, targets


def test_patterns() -> None:
    name = "blocks.10.attention.q"
    assert all(matches(name, one) for one in ("q", "attention.q", "attention.*", "blocks.10.*", name, r"re:blocks\.\d+\..*q"))
    assert not any(matches(name, one) for one in ("k", "tention.q", "blocks.1.*", "re:q", "attention"))


def test_all_but_heads_and_what_routes() -> None:
    model = filled([*LLAMA, "model/head=classifier", "stage=finetune", "data=examples", "data.files=[a]", "data/task=classify"])
    everything = linear_maps(model)
    assert {name for name in everything if name.startswith("head.")} == {"head.dense"}
    assert set(targets(model, None)) == {name for name in everything if name != "head.dense"}
    assert set(targets(model, ["*"])) == set(targets(model, None))
    assert set(targets(model, ["head.dense"])) == {"head.dense"}


def test_stacks_of_experts_and_no_router() -> None:
    shared = ["model.ffn.shared_hidden=8", "model.ffn.shared_gate=true"]
    model = filled([*MOE, *shared])
    there = set(targets(model, None))
    assert {f"blocks.0.ffn.experts.{name}" for name in ("gate", "up", "down")} <= there
    assert not any("router" in name or "shared_gate" in name for name in there)
    assert "blocks.0.ffn.shared.up" in there
    assert set(targets(model, ["shared_gate"])) == {"blocks.0.ffn.shared_gate", "blocks.1.ffn.shared_gate"}


def test_a_pattern_that_means_nothing_is_told_what_there_is() -> None:
    with pytest.raises(UserError, match=r"no linear map is called q_proj; there are blocks\.\*\.attention\.q, .*ffn\.down"):
        targets(filled(LLAMA), ["q", "q_proj"])
