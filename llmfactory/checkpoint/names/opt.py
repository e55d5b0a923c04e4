"""OPT (Zhang et al. 2022): as GPT-2 with ReLU; positions from row 2 of their table on; the 350M is post-norm, its tokens' vectors
half as wide as the model. Galactica (Taylor et al. 2022) is published in the same format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, Inexpressible, linear, same
from llmfactory.checkpoint.names.reading import activation, activation_name, decoder, expect, refuse, said
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import PostNorm, PreNorm
from llmfactory.model.embedding.spec import EmbeddingSpec, Factorized, Token
from llmfactory.model.ffn.spec import Mlp
from llmfactory.model.head.spec import Lm
from llmfactory.model.norm.spec import LayerNorm
from llmfactory.model.position.spec import Learned
from llmfactory.model.spec import DecoderOnly, ModelSpec

OFFSET = 2
"""Rows of the position table that stand before the first position."""


class Opt(Family):
    types = ("opt",)

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, _remove_final_layer_norm=False, learned_embeddings=True, scale_embeddings=False)
        dim, bias = config["hidden_size"], config.get("enable_bias", True)
        affine, width = config.get("layer_norm_elementwise_affine", True), config.get("word_embed_proj_dim") or dim
        tied, narrow = config.get("tie_word_embeddings", True), width != dim
        embedding: EmbeddingSpec = Factorized(width=width) if narrow else Token()
        return DecoderOnly(
            vocab_size=config["vocab_size"],
            dim=dim,
            n_layers=config["num_hidden_layers"],
            max_positions=config["max_position_embeddings"],
            init_std=config.get("init_std", 0.02),
            norm=LayerNorm(gain=affine, bias=affine),
            position=Learned(offset=OFFSET),
            attention=Gqa(n_heads=config["num_attention_heads"], bias=bias),
            ffn=Mlp(hidden=config["ffn_dim"], activation=activation(config.get("activation_function", "relu")), bias=bias),
            block=PreNorm() if config.get("do_layer_norm_before", True) else PostNorm(),
            embedding=embedding,
            head=Lm(tied=tied, width=width if narrow else None),
        )

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = decoder(spec)
        attention, ffn, head = said(model.attention, Gqa, "bias"), said(model.ffn, Mlp, "bias"), said(model.head, Lm, "width")
        norm = said(model.norm, LayerNorm, "gain", "bias")
        said(model.position, Learned, offset=OFFSET)
        width = said(model.embedding, Factorized).width if type(model.embedding) is Factorized else None
        if width is None:
            said(model.embedding, Token)
        if head.width != width or norm.gain != norm.bias or ffn.bias != attention.bias:
            raise Inexpressible("its widths or biases differ where this family has one key for both")
        if not isinstance(model.block, PreNorm):
            expect(model.block, PostNorm)
        return {
            "model_type": "opt",
            "architectures": ["OPTForCausalLM"],
            "vocab_size": model.vocab_size,
            "hidden_size": model.dim,
            "num_hidden_layers": model.n_layers,
            "num_attention_heads": attention.n_heads,
            "max_position_embeddings": model.max_positions,
            "ffn_dim": ffn.hidden,
            "activation_function": activation_name(ffn.activation),
            "word_embed_proj_dim": width or model.dim,
            "do_layer_norm_before": isinstance(model.block, PreNorm),
            "enable_bias": attention.bias,
            "layer_norm_elementwise_affine": norm.gain,
            "init_std": model.init_std,
            "tie_word_embeddings": head.tied,
        }

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = decoder(spec)
        attention, norm, head = expect(model.attention, Gqa), expect(model.norm, LayerNorm), expect(model.head, Lm)
        stem = "model.decoder"
        yield same("embedding.weight", f"{stem}.embed_tokens.weight")
        yield same("position.weight", f"{stem}.embed_positions.weight")
        if head.width is not None:
            yield same("embedding.project.weight", f"{stem}.project_in.weight")
            yield same("head.transform.dense.weight", f"{stem}.project_out.weight")
        norms = [("attention_norm", "self_attn_layer_norm"), ("ffn_norm", "final_layer_norm")] if norm.gain else []
        for layer in range(model.n_layers):
            ours, theirs = f"blocks.{layer}", f"{stem}.layers.{layer}"
            for name, other in norms:
                yield from linear(f"{ours}.{name}", f"{theirs}.{other}", bias=True)
            for name, other in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj")):
                yield from linear(f"{ours}.attention.{name}", f"{theirs}.self_attn.{other}", attention.bias)
            yield from linear(f"{ours}.ffn.up", f"{theirs}.fc1", attention.bias)
            yield from linear(f"{ours}.ffn.down", f"{theirs}.fc2", attention.bias)
        if norms and isinstance(model.block, PreNorm):
            yield from linear("norm", f"{stem}.final_layer_norm", bias=True)
        if not head.tied:
            yield same("head.weight", "lm_head.weight")
