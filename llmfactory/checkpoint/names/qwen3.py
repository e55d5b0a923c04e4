"""Qwen3 (Yang et al. 2025): LLaMA with a norm over each head of queries and keys, and heads of a width of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family
from llmfactory.checkpoint.names.llama import HEADS, attention_of, llama_config, llama_entries, llama_spec
from llmfactory.checkpoint.names.qwen2 import kinds_of
from llmfactory.checkpoint.names.reading import decoder, said
from llmfactory.checkpoint.names.rope import rope_config
from llmfactory.checkpoint.names.windows import layer_types, windowed
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.ffn.spec import Glu
from llmfactory.model.norm.spec import RmsNorm
from llmfactory.model.spec import ModelSpec


class Qwen3(Family):
    types = ("qwen3",)

    def spec(self, config: Config) -> ModelSpec:
        norm = RmsNorm(eps=config.get("rms_norm_eps", 1e-6))
        sizes = {"head_dim": 128, **config}
        attention = attention_of(sizes, bias=config.get("attention_bias", False), qk_norm=norm)
        return llama_spec(config, **windowed(attention, kinds_of(config), config.get("sliding_window")))

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = decoder(spec, "others", "pattern")
        attention = said(model.attention, Gqa, *HEADS, "bias", "window", qk_norm=model.norm)
        said(model.ffn, Glu)
        windows = layer_types(model)
        says = {"attention_bias": attention.bias, "use_sliding_window": windows["sliding_window"] is not None, **windows}
        sizes = llama_config(model, "qwen3", "Qwen3ForCausalLM")
        return {**sizes, **rope_config(model.position, model.max_positions), **says}

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        return llama_entries(decoder(spec, "others", "pattern"))
