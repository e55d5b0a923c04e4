"""BLOOM (Le Scao et al. 2022): ALiBi, a norm of the embeddings, tanh-GELU, q, k and v of each head side by side in one matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, grouped, linear, same
from llmfactory.checkpoint.names.reading import decoder, expect, refuse, said
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import PreNorm
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Activation, Mlp
from llmfactory.model.head.spec import Lm
from llmfactory.model.norm.spec import LayerNorm
from llmfactory.model.position.spec import Alibi
from llmfactory.model.spec import DecoderOnly, ModelSpec

POSITIONS = 2048
"""Tokens that BLOOM was trained on; the library's config does not say it, for ALiBi has no end."""


class Bloom(Family):
    types = ("bloom",)

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, apply_residual_connection_post_layernorm=False, slow_but_exact=False)
        dim = config.get("hidden_size") or config["n_embed"]
        return DecoderOnly(
            vocab_size=config["vocab_size"],
            dim=dim,
            n_layers=config.get("n_layer") or config["num_hidden_layers"],
            max_positions=config.get("seq_length") or POSITIONS,
            init_std=config.get("initializer_range", 0.02),
            norm=LayerNorm(eps=config.get("layer_norm_epsilon", 1e-5)),
            position=Alibi(),
            attention=Gqa(n_heads=config.get("n_head") or config["num_attention_heads"], bias=True),
            ffn=Mlp(hidden=4 * dim, activation=Activation.gelu_tanh),
            block=PreNorm(),
            embedding=Token(),
            embedding_norm=True,
            head=Lm(tied=config.get("tie_word_embeddings", True)),
        )

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = decoder(spec, "embedding_norm", position=Alibi, block=PreNorm)
        said(model.embedding, Token)
        said(model.ffn, Mlp, hidden=4 * model.dim, activation=Activation.gelu_tanh)
        expect(model, DecoderOnly, embedding_norm=True)
        return {
            "model_type": "bloom",
            "architectures": ["BloomForCausalLM"],
            "vocab_size": model.vocab_size,
            "hidden_size": model.dim,
            "n_layer": model.n_layers,
            "n_head": said(model.attention, Gqa, bias=True, n_kv_heads=(None, model.attention.n_heads)).n_heads,
            "seq_length": model.max_positions,
            "layer_norm_epsilon": said(model.norm, LayerNorm, "eps").eps,
            "initializer_range": model.init_std,
            "tie_word_embeddings": said(model.head, Lm).tied,
        }

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = decoder(spec, "embedding_norm")
        heads = model.attention.n_heads
        yield same("embedding.weight", "transformer.word_embeddings.weight")
        yield from linear("embedding_norm", "transformer.word_embeddings_layernorm", bias=True)
        for layer in range(model.n_layers):
            ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
            yield from linear(f"{ours}.attention_norm", f"{theirs}.input_layernorm", bias=True)
            yield from linear(f"{ours}.ffn_norm", f"{theirs}.post_attention_layernorm", bias=True)
            for kind in ("weight", "bias"):
                qkv = [f"{ours}.attention.{name}.{kind}" for name in "qkv"]
                yield grouped(qkv, f"{theirs}.self_attention.query_key_value.{kind}", heads, heads)
            yield from linear(f"{ours}.attention.o", f"{theirs}.self_attention.dense", bias=True)
            yield from linear(f"{ours}.ffn.up", f"{theirs}.mlp.dense_h_to_4h", bias=True)
            yield from linear(f"{ours}.ffn.down", f"{theirs}.mlp.dense_4h_to_h", bias=True)
        yield from linear("norm", "transformer.ln_f", bias=True)
        if not expect(model.head, Lm).tied:
            yield same("head.weight", "lm_head.weight")
