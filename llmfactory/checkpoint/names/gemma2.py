"""Gemma 2 (Riviere et al. 2024): Gemma with norms before and after each sub-layer, bounded scores and logits, and a window on
every other layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, same
from llmfactory.checkpoint.names.llama import HEADS, attention_entries, attention_of, end_entries, ffn_entries, llama_spec, sizes
from llmfactory.checkpoint.names.reading import activation, activation_name, decoder, expect, refuse, said
from llmfactory.checkpoint.names.rope import rope_config
from llmfactory.checkpoint.names.windows import FULL, SLIDING, layer_types, windowed
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import Sandwich
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Glu
from llmfactory.model.head.spec import Lm
from llmfactory.model.norm.spec import RmsNorm
from llmfactory.model.spec import ModelSpec

NORMS = {
    "attention_norm": "input_layernorm",
    "attention_out_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_out_norm": "post_feedforward_layernorm",
}
"""Of a block, ours and theirs."""


class Gemma2(Family):
    types = ("gemma2",)

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, use_bidirectional_attention=False)
        heads, scalar = {"num_key_value_heads": 4, "head_dim": 256, **config}, config.get("query_pre_attn_scalar", 256)
        attention = attention_of(
            heads,
            bias=config.get("attention_bias", False),
            scale=None if scalar == heads["head_dim"] else scalar**-0.5,
            softcap=config.get("attn_logit_softcapping", 50.0),
        )
        kinds = config.get("layer_types") or [FULL if layer % 2 else SLIDING for layer in range(config["num_hidden_layers"])]
        return llama_spec(
            config,
            norm=RmsNorm(eps=config.get("rms_norm_eps", 1e-6), offset=1.0),
            ffn=Glu(
                hidden=config["intermediate_size"], activation=activation(config.get("hidden_activation") or "gelu_pytorch_tanh")
            ),
            block=Sandwich(),
            embedding=Token(dim_power=0.5),
            head=Lm(tied=config.get("tie_word_embeddings", True), softcap=config.get("final_logit_softcapping", 30.0)),
            **windowed(attention, kinds, config.get("sliding_window", 4096)),
        )

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = decoder(spec, "others", "pattern", block=Sandwich)
        said(model.norm, RmsNorm, "eps", offset=1.0)
        said(model.embedding, Token, dim_power=0.5)
        ffn, head = said(model.ffn, Glu), said(model.head, Lm, "softcap")
        attention = said(model.attention, Gqa, *HEADS, "bias", "scale", "softcap", "window")
        scale = attention.head_width(model.dim) ** -0.5 if attention.scale is None else attention.scale
        return {
            **sizes(model, "gemma2", "Gemma2ForCausalLM"),
            **rope_config(model.position, model.max_positions),
            **layer_types(model),
            "hidden_activation": activation_name(ffn.activation),
            "attention_bias": attention.bias,
            "query_pre_attn_scalar": int(scalar) if (scalar := round(scale**-2, 6)).is_integer() else scalar,
            "attn_logit_softcapping": attention.softcap,
            "final_logit_softcapping": head.softcap,
        }

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = decoder(spec, "others", "pattern")
        attention, ffn = expect(model.attention, Gqa), expect(model.ffn, Glu)
        yield same("embedding.weight", "model.embed_tokens.weight")
        for layer in range(model.n_layers):
            ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
            yield from attention_entries(ours, theirs, attention)
            yield from ffn_entries(ours, theirs, ffn)
            for name, other in NORMS.items():
                yield same(f"{ours}.{name}.weight", f"{theirs}.{other}.weight")
        yield from end_entries(model)
