"""Mixtral (Jiang et al. 2024): LLaMA whose feed-forward parts are mixtures; the matrices of experts are one by one in files.

The balance loss of `transformers` pools the layers, ours is a sum over them: `balance` is a layer's share of their coefficient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, linear, same, stacked
from llmfactory.checkpoint.names.llama import HEADS, attention_entries, attention_of, end_entries, llama_config, llama_spec
from llmfactory.checkpoint.names.reading import activation, decoder, expect, said
from llmfactory.checkpoint.names.rope import rope, rope_config
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.ffn.spec import Glu, Moe
from llmfactory.model.norm.spec import RmsNorm
from llmfactory.model.spec import DecoderOnly, ModelSpec


class Mixtral(Family):
    types = ("mixtral",)

    def spec(self, config: Config) -> ModelSpec:
        return llama_spec(
            config,
            norm=RmsNorm(eps=config.get("rms_norm_eps", 1e-5)),
            position=rope(config, theta=1e6),
            attention=attention_of({"num_key_value_heads": 8, **config}, window=config.get("sliding_window")),
            ffn=Moe(
                hidden=config["intermediate_size"],
                n_experts=config.get("num_local_experts", 8),
                k=config.get("num_experts_per_tok", 2),
                activation=activation(config.get("hidden_act", "silu")),
                gated=True,
                balance=share(config.get("router_aux_loss_coef", 0.001), config["num_hidden_layers"]),
                jitter=config.get("router_jitter_noise", 0.0),
            ),
        )

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = decoder(spec)
        window = said(model.attention, Gqa, *HEADS, "window").window
        ffn = said(model.ffn, Moe, "balance", "balance_over", "jitter", gated=True)
        return {
            **llama_config(dense(model, ffn.hidden), "mixtral", "MixtralForCausalLM"),
            **rope_config(model.position, model.max_positions),
            "sliding_window": window,
            "num_local_experts": ffn.n_experts,
            "num_experts_per_tok": ffn.k,
            "router_aux_loss_coef": pooled(ffn.balance, model.n_layers),
            "router_jitter_noise": ffn.jitter,
        }

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = decoder(spec)
        ffn = expect(model.ffn, Moe)
        yield same("embedding.weight", "model.embed_tokens.weight")
        for layer in range(model.n_layers):
            ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
            yield from layer_entries(ours, theirs, expect(model.attention, Gqa))
            moe = f"{theirs}.block_sparse_moe"
            yield same(f"{ours}.ffn.router.weight", f"{moe}.gate.weight")
            yield from expert_entries(ours, f"{moe}.experts", ffn.n_experts, {"gate": "w1", "down": "w2", "up": "w3"})
        yield from end_entries(model)


def layer_entries(ours: str, theirs: str, attention: Gqa) -> Iterator[Entry]:
    """Attention and the norms."""
    yield from attention_entries(ours, theirs, attention)
    yield from linear(f"{ours}.attention_norm", f"{theirs}.input_layernorm", bias=False)
    yield from linear(f"{ours}.ffn_norm", f"{theirs}.post_attention_layernorm", bias=False)


def expert_entries(ours: str, theirs: str, n_experts: int, names: Mapping[str, str]) -> Iterator[Entry]:
    """Our stacks of matrices, by name, from one matrix for each expert."""
    for name, other in names.items():
        yield stacked(f"{ours}.ffn.experts.{name}", [f"{theirs}.{expert}.{other}.weight" for expert in range(n_experts)])


def dense(model: DecoderOnly, hidden: int) -> DecoderOnly:
    """The model with a plain gated part of this width in all layers: what LLaMA's keys can say of it."""
    activation = expect(model.ffn, Moe).activation
    return dataclasses.replace(model, ffn=Glu(hidden=hidden, activation=activation), others={}, pattern=[])


def share(coefficient: float, n_layers: int) -> float:
    """Of one of so many layers; rounded, so that `pooled` gives the number back."""
    return float(f"{coefficient / n_layers:.12g}")


def pooled(balance: float, n_layers: int) -> float:
    """The coefficient of which `balance` is one layer's share."""
    return float(f"{balance * n_layers:.12g}")
