"""GPT-NeoX (Black et al. 2022) and Pythia: attention and feed-forward side by side, a quarter of each head rotated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, grouped, linear, same
from llmfactory.checkpoint.names.reading import activation, activation_name, decoder, expect, said
from llmfactory.checkpoint.names.rope import rope, rope_config
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import Parallel, PreNorm
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Mlp
from llmfactory.model.head.spec import Lm
from llmfactory.model.norm.spec import LayerNorm
from llmfactory.model.spec import DecoderOnly, ModelSpec


class GptNeox(Family):
    types = ("gpt_neox",)
    ignored = (r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",)

    def spec(self, config: Config) -> ModelSpec:
        share = config.get("rotary_pct") or 0.25
        return DecoderOnly(
            vocab_size=config["vocab_size"],
            dim=config["hidden_size"],
            n_layers=config["num_hidden_layers"],
            max_positions=config["max_position_embeddings"],
            init_std=config.get("initializer_range", 0.02),
            norm=LayerNorm(eps=config.get("layer_norm_eps", 1e-5)),
            position=rope(config, theta=config.get("rotary_emb_base") or 10000.0, share=share),
            attention=Gqa(n_heads=config["num_attention_heads"], bias=config.get("attention_bias", True)),
            ffn=Mlp(hidden=config["intermediate_size"], activation=activation(config.get("hidden_act", "gelu"))),
            block=Parallel(shared_norm=False) if config.get("use_parallel_residual", True) else PreNorm(),
            embedding=Token(),
            head=Lm(tied=config.get("tie_word_embeddings", False)),
        )

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = decoder(spec)
        said(model.embedding, Token)
        parallel = not isinstance(model.block, PreNorm)
        if parallel:
            expect(model.block, Parallel, shared_norm=False)
        attention = said(model.attention, Gqa, "bias", n_kv_heads=(None, model.attention.n_heads))
        ffn = said(model.ffn, Mlp)
        rotary = rope_config(model.position, model.max_positions, part_of=attention.head_width(model.dim))
        return {
            "model_type": "gpt_neox",
            "architectures": ["GPTNeoXForCausalLM"],
            "vocab_size": model.vocab_size,
            "hidden_size": model.dim,
            "num_hidden_layers": model.n_layers,
            "num_attention_heads": attention.n_heads,
            "attention_bias": attention.bias,
            "max_position_embeddings": model.max_positions,
            "intermediate_size": ffn.hidden,
            "hidden_act": activation_name(ffn.activation),
            "layer_norm_eps": said(model.norm, LayerNorm, "eps").eps,
            "rotary_emb_base": rotary.pop("rope_theta"),
            "rotary_pct": rotary.pop("partial_rotary_factor", 1.0),
            **rotary,
            "use_parallel_residual": parallel,
            "initializer_range": model.init_std,
            "tie_word_embeddings": said(model.head, Lm).tied,
        }

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = decoder(spec)
        attention = expect(model.attention, Gqa)
        yield same("embedding.weight", "gpt_neox.embed_in.weight")
        for layer in range(model.n_layers):
            ours, theirs = f"blocks.{layer}", f"gpt_neox.layers.{layer}"
            yield from linear(f"{ours}.attention_norm", f"{theirs}.input_layernorm", bias=True)
            yield from linear(f"{ours}.ffn_norm", f"{theirs}.post_attention_layernorm", bias=True)
            for kind in ("weight", "bias") if attention.bias else ("weight",):
                qkv = [f"{ours}.attention.{name}.{kind}" for name in "qkv"]
                yield grouped(qkv, f"{theirs}.attention.query_key_value.{kind}", attention.n_heads, attention.n_heads)
            yield from linear(f"{ours}.attention.o", f"{theirs}.attention.dense", attention.bias)
            yield from linear(f"{ours}.ffn.up", f"{theirs}.mlp.dense_h_to_4h", bias=True)
            yield from linear(f"{ours}.ffn.down", f"{theirs}.mlp.dense_4h_to_h", bias=True)
        yield from linear("norm", "gpt_neox.final_layer_norm", bias=True)
        if not expect(model.head, Lm).tied:
            yield same("head.weight", "embed_out.weight")
