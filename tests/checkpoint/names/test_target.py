"""Which family a model is exported as."""

from __future__ import annotations

from typing import Any

import pytest

from llmfactory.checkpoint.names.family import Inexpressible
from llmfactory.checkpoint.names.target import target_for
from llmfactory.config.compose import compose_job


def test_models_are_written_as_what_others_load_without_code_of_its_own():
    """Baichuan's tensors say a LLaMA too, but only with the code of its checkpoint."""
    for preset, kind in (("llama_tiny", "llama"), ("gpt2_tiny", "gpt2"), ("bert_tiny", "bert")):
        assert target_for(compose_job([f"model={preset}", "stage=describe"]).job.model).config["model_type"] == kind


@pytest.mark.parametrize("preset", ["llava_1_5_7b", "minigpt4"])
def test_so_are_decoders_within_others(preset: str) -> None:
    assert target_for(model_of(f"model={preset}", "toy=true")).config["text_config"]["model_type"] == "llama"


def model_of(*overrides: str) -> Any:
    return compose_job(["stage=describe", *overrides]).job.model


@pytest.mark.parametrize(
    "preset", ["llama_tiny", "qwen2_0_5b", "qwen3_0_6b", "gemma_2b", "gemma2_2b", "mistral_7b", "mixtral_8x7b", "falcon_7b"]
)
def test_families_that_rotate_whole_heads_do_not_say_a_part(preset: str) -> None:
    """`transformers` passes `partial_rotary_factor` over in all of them: the logits would be other ones."""
    with pytest.raises(Inexpressible, match="rotates whole heads"):
        model = model_of(f"model={preset}")
        target_for(model_of(f"model={preset}", "model.position.share=0.5"), target_for(model).config["model_type"])


@pytest.mark.parametrize(("preset", "kind"), [("phi_2", "phi"), ("gpt_neox_20b", "gpt_neox")])
def test_a_part_of_a_head_is_said_in_whole_pairs(preset: str, kind: str) -> None:
    """We rotate whole pairs, others `int(share * width)` coordinates: 0.4 of 8 is 2 here and 3 there."""
    assert target_for(model_of(f"model={preset}", "toy=true", "model.position.share=0.5")).config["model_type"] == kind
    with pytest.raises(Inexpressible, match=r"share=0.4, which is no whole pairs of a head 8 wide"):
        target_for(model_of(f"model={preset}", "toy=true", "model.position.share=0.4"), kind)
