"""Qwen2 (Yang et al. 2024): LLaMA with biases of queries, keys and values; the upper layers may see a window only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family
from llmfactory.checkpoint.names.llama import attention_of, llama_config, llama_entries, llama_spec
from llmfactory.checkpoint.names.reading import decoder, said
from llmfactory.checkpoint.names.rope import rope_config
from llmfactory.checkpoint.names.windows import FULL, SLIDING, layer_types, windowed
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.ffn.spec import Glu
from llmfactory.model.spec import ModelSpec


class Qwen2(Family):
    types = ("qwen2",)

    def spec(self, config: Config) -> ModelSpec:
        return llama_spec(config, **windowed(attention_of(config, qkv_bias=True), kinds_of(config), config.get("sliding_window")))

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = decoder(spec, "others", "pattern")
        said(model.attention, Gqa, "n_kv_heads", "window", qkv_bias=True)
        said(model.ffn, Glu)
        windows = layer_types(model)
        says = {
            **rope_config(model.position, model.max_positions),
            **windows,
            "use_sliding_window": windows["sliding_window"] is not None,
        }
        sizes = llama_config(model, "qwen2", "Qwen2ForCausalLM")
        return {key: value for key, value in {**sizes, **says}.items() if key != "head_dim"}

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        return llama_entries(decoder(spec, "others", "pattern"))


def kinds_of(config: Config) -> list[str]:
    """The kind of each layer: said, or sliding from `max_window_layers` on where that is switched on."""
    if config.get("layer_types"):
        return list(config["layer_types"])
    n_layers = config["num_hidden_layers"]
    first = config.get("max_window_layers", 28) if config.get("use_sliding_window") else n_layers
    return [SLIDING if layer >= first else FULL for layer in range(n_layers)]
