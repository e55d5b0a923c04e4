"""Which family a model is exported as."""

from __future__ import annotations

from llmfactory.checkpoint.names.target import target_for
from llmfactory.config.compose import compose_job


def test_models_are_written_as_what_others_load_without_code_of_its_own():
    """Baichuan's tensors say a LLaMA too, but only with the code of its checkpoint."""
    for preset, kind in (("llama_tiny", "llama"), ("gpt2_tiny", "gpt2"), ("bert_tiny", "bert")):
        assert target_for(compose_job([f"model={preset}", "stage=describe"]).job.model).config["model_type"] == kind
