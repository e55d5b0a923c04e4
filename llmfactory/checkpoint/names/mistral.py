"""Mistral (Jiang et al. 2023): LLaMA whose layers all see a window of the text (version 0.1) or all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family
from llmfactory.checkpoint.names.llama import HEADS, attention_of, llama_config, llama_entries, llama_spec
from llmfactory.checkpoint.names.reading import decoder, refuse, said
from llmfactory.checkpoint.names.rope import rope_config
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.ffn.spec import Glu
from llmfactory.model.spec import ModelSpec


class Mistral(Family):
    types = ("mistral",)

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, layer_types=None)
        return llama_spec(
            config, attention=attention_of({"num_key_value_heads": 8, **config}, window=config.get("sliding_window"))
        )

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = decoder(spec)
        window = said(model.attention, Gqa, *HEADS, "window").window
        said(model.ffn, Glu)
        says = {**rope_config(model.position, model.max_positions), "sliding_window": window}
        return {**llama_config(model, "mistral", "MistralForCausalLM"), **says}

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        return llama_entries(decoder(spec))
