"""InternLM (InternLM team 2023): LLaMA, at 7B with biases in attention. Published with code of its own, whose tensors have LLaMA's
names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family
from llmfactory.checkpoint.names.llama import attention_of, llama_config, llama_entries, llama_spec
from llmfactory.checkpoint.names.reading import decoder, said
from llmfactory.checkpoint.names.rope import rope, rope_config
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.ffn.spec import Glu
from llmfactory.model.spec import ModelSpec


class InternLm(Family):
    types = ("internlm",)
    own_code = True
    ignored = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)

    def spec(self, config: Config) -> ModelSpec:
        return llama_spec(config, attention=attention_of(config, bias=config.get("bias", True)), position=rope(rotary_of(config)))

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = decoder(spec)
        said(model.ffn, Glu)
        bias = said(model.attention, Gqa, bias=(False, True), n_kv_heads=(None, model.attention.n_heads)).bias
        says = {**rope_config(model.position, model.max_positions), "bias": bias}
        return {**llama_config(model, "internlm", "InternLMForCausalLM"), **says}

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        return llama_entries(decoder(spec))


def rotary_of(config: Config) -> Config:
    """With `rotary` ({base, type}, beside it no factor: `dynamic` starts beyond the trained length) read as `rope_scaling`."""
    rotary = dict(config.get("rotary") or {})
    if not rotary:
        return config
    kind = {"origin": "default"}.get(rotary.get("type", "origin"), rotary.get("type"))
    scaling = {"rope_type": kind, "rope_theta": rotary.get("base", 10000), "factor": rotary.get("scaling_factor", 1.0)}
    return {**config, "rope_scaling": scaling}
