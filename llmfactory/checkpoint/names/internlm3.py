"""InternLM3 (Cai et al. 2024): LLaMA with heads of a width of their own; one switch gives every matrix a bias."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, Inexpressible
from llmfactory.checkpoint.names.llama import HEADS, attention_of, ffn_of, llama_config, llama_entries, llama_spec
from llmfactory.checkpoint.names.reading import decoder, said
from llmfactory.checkpoint.names.rope import rope_config
from llmfactory.core.errors import UserError
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.ffn.spec import Glu
from llmfactory.model.spec import ModelSpec


class InternLm3(Family):
    types = ("internlm3",)

    def spec(self, config: Config) -> ModelSpec:
        bias = config.get("attention_bias", config.get("qkv_bias", False))
        if bias != config.get("mlp_bias", config.get("bias", False)):
            raise UserError("qkv_bias and bias differ in config.json, which has no counterpart here")
        sizes = {"num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1e-5, **config}
        return llama_spec(sizes, attention=attention_of(sizes, bias=bias), ffn=ffn_of(config, bias=bias))

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = decoder(spec)
        bias = said(model.attention, Gqa, *HEADS, "bias").bias
        if said(model.ffn, Glu, "bias").bias != bias:
            raise Inexpressible("attention has biases and the feed-forward has none, or the other way round")
        says = {**rope_config(model.position, model.max_positions), "qkv_bias": bias, "bias": bias}
        return {**llama_config(model, "internlm3", "InternLM3ForCausalLM"), **says}

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        return llama_entries(decoder(spec))
