"""Phi-1, 1.5 and 2 (Gunasekar et al. 2023): attention and feed-forward side by side after one norm, part of each head rotated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, linear, same
from llmfactory.checkpoint.names.llama import attention_of
from llmfactory.checkpoint.names.reading import activation, activation_name, decoder, expect, refuse, said
from llmfactory.checkpoint.names.rope import rope, rope_config
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import Parallel
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Mlp
from llmfactory.model.head.spec import Lm
from llmfactory.model.norm.spec import LayerNorm
from llmfactory.model.spec import DecoderOnly, ModelSpec


class Phi(Family):
    types = ("phi",)
    ignored = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, qk_layernorm=False, tie_word_embeddings=False)
        return DecoderOnly(
            vocab_size=config["vocab_size"],
            dim=config["hidden_size"],
            n_layers=config["num_hidden_layers"],
            max_positions=config["max_position_embeddings"],
            init_std=config.get("initializer_range", 0.02),
            norm=LayerNorm(eps=config.get("layer_norm_eps", 1e-5)),
            position=rope(config, share=0.5),
            attention=attention_of(config, bias=True),
            ffn=Mlp(hidden=config["intermediate_size"], activation=activation(config.get("hidden_act", "gelu_new"))),
            block=Parallel(shared_norm=True),
            embedding=Token(),
            head=Lm(tied=False, bias=True),
        )

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = decoder(spec)
        expect(model.block, Parallel, shared_norm=True)
        said(model.embedding, Token)
        said(model.head, Lm, tied=False, bias=True)
        attention, ffn = said(model.attention, Gqa, "n_kv_heads", bias=True), said(model.ffn, Mlp)
        return {
            "model_type": "phi",
            "architectures": ["PhiForCausalLM"],
            "vocab_size": model.vocab_size,
            "hidden_size": model.dim,
            "num_hidden_layers": model.n_layers,
            "num_attention_heads": attention.n_heads,
            "num_key_value_heads": attention.n_kv_heads or attention.n_heads,
            "max_position_embeddings": model.max_positions,
            "intermediate_size": ffn.hidden,
            "hidden_act": activation_name(ffn.activation),
            "layer_norm_eps": said(model.norm, LayerNorm, "eps").eps,
            "partial_rotary_factor": 1.0,
            **rope_config(model.position, model.max_positions, part_of=attention.head_width(model.dim)),
            "initializer_range": model.init_std,
            "tie_word_embeddings": False,
        }

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = decoder(spec)
        yield same("embedding.weight", "model.embed_tokens.weight")
        for layer in range(model.n_layers):
            ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
            yield from linear(f"{ours}.attention_norm", f"{theirs}.input_layernorm", bias=True)
            for name, other in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "dense")):
                yield from linear(f"{ours}.attention.{name}", f"{theirs}.self_attn.{other}", bias=True)
            yield from linear(f"{ours}.ffn.up", f"{theirs}.mlp.fc1", bias=True)
            yield from linear(f"{ours}.ffn.down", f"{theirs}.mlp.fc2", bias=True)
        yield from linear("norm", "model.final_layernorm", bias=True)
        yield from linear("head", "lm_head", bias=True)
