"""Gemma (Mesnard et al. 2024): LLaMA with gains of 1 + weight, embeddings times sqrt(dim), wide heads and GeGLU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, Inexpressible
from llmfactory.checkpoint.names.llama import HEADS, attention_of, llama_entries, llama_spec, sizes
from llmfactory.checkpoint.names.reading import activation, decoder, refuse, said
from llmfactory.checkpoint.names.rope import rope_config
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import PreNorm
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Activation, Glu
from llmfactory.model.head.spec import Lm
from llmfactory.model.norm.spec import RmsNorm
from llmfactory.model.spec import ModelSpec


class Gemma(Family):
    types = ("gemma",)
    ignored = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, use_bidirectional_attention=False)
        attention = {"num_key_value_heads": 16, "head_dim": 256, **config}
        return llama_spec(
            config,
            norm=RmsNorm(eps=config.get("rms_norm_eps", 1e-6), offset=1.0),
            attention=attention_of(attention, bias=config.get("attention_bias", False)),
            ffn=Glu(hidden=config["intermediate_size"], activation=gelu(config)),
            embedding=Token(dim_power=0.5),
            head=Lm(tied=config.get("tie_word_embeddings", True)),
        )

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = decoder(spec, block=PreNorm)
        said(model.norm, RmsNorm, "eps", offset=1.0)
        said(model.embedding, Token, dim_power=0.5)
        said(model.head, Lm)
        if said(model.ffn, Glu).activation is Activation.gelu:
            raise Inexpressible("its gates are the exact GELU, which this family takes for the tanh approximation")
        bias = said(model.attention, Gqa, *HEADS, "bias").bias
        says = {**rope_config(model.position, model.max_positions), "attention_bias": bias}
        return {**sizes(model, "gemma", "GemmaForCausalLM"), **says}

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        return llama_entries(decoder(spec))


def gelu(config: Config) -> Activation:
    """The activation; the first files say `gelu` and mean its tanh approximation, and newer ones say so in `hidden_activation`."""
    name = config.get("hidden_activation") or config.get("hidden_act") or "gelu"
    return activation("gelu_pytorch_tanh" if name == "gelu" else name)
