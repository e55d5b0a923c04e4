"""GLM-4 (GLM team 2024), which followed ChatGLM3: LLaMA with half of each head rotated, neighbors in pairs, biases of queries, keys
and values, and the gate's and the other hidden matrix in one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, joined, same
from llmfactory.checkpoint.names.llama import HEADS, attention_entries, attention_of, end_entries, llama_config, llama_spec
from llmfactory.checkpoint.names.reading import decoder, expect, said
from llmfactory.checkpoint.names.rope import rope, rope_config
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.ffn.spec import Glu
from llmfactory.model.spec import ModelSpec


class Glm(Family):
    types = ("glm",)

    def spec(self, config: Config) -> ModelSpec:
        heads = {"num_key_value_heads": 2, "head_dim": 128, **config}
        return llama_spec(
            {"rms_norm_eps": 1.5625e-07, **config},
            attention=attention_of(heads, qkv_bias=config.get("attention_bias", True)),
            position=rope(config, share=0.5, interleaved=True),
        )

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = decoder(spec)
        said(model.ffn, Glu)
        attention = said(model.attention, Gqa, *HEADS, qkv_bias=(False, True))
        rotary = rope_config(model.position, model.max_positions, interleaved=True, part_of=attention.head_width(model.dim))
        says = {"partial_rotary_factor": 1.0, **rotary, "attention_bias": attention.qkv_bias}
        return {**llama_config(model, "glm", "GlmForCausalLM"), **says}

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = decoder(spec)
        hidden = model.ffn.hidden
        yield same("embedding.weight", "model.embed_tokens.weight")
        for layer in range(model.n_layers):
            ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
            yield from attention_entries(ours, theirs, expect(model.attention, Gqa))
            yield same(f"{ours}.attention_norm.weight", f"{theirs}.input_layernorm.weight")
            yield same(f"{ours}.ffn_norm.weight", f"{theirs}.post_attention_layernorm.weight")
            both = [f"{ours}.ffn.gate.weight", f"{ours}.ffn.up.weight"]
            yield joined(both, f"{theirs}.mlp.gate_up_proj.weight", [hidden, hidden])
            yield same(f"{ours}.ffn.down.weight", f"{theirs}.mlp.down_proj.weight")
        yield from end_entries(model)
