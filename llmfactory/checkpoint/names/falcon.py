"""Falcon (Almazrouei et al. 2023). The older architecture (7B): one norm, one key/value head or as many as queries. The newer one
(40B): a norm each for attention and feed-forward, groups of heads. In both, a group's q, k and v lie side by side in one matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, grouped, linear, same
from llmfactory.checkpoint.names.reading import activation, activation_name, decoder, expect, refuse, said
from llmfactory.checkpoint.names.rope import rope, rope_config
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import BlockSpec, Parallel, PreNorm
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Mlp
from llmfactory.model.head.spec import Lm
from llmfactory.model.norm.spec import LayerNorm
from llmfactory.model.spec import DecoderOnly, ModelSpec


class Falcon(Family):
    types = ("falcon",)

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, alibi=False)  # its score biases are divided by the square root of a head's width
        dim, heads = config.get("hidden_size") or config["n_embed"], config["num_attention_heads"]
        bias, positions = config.get("bias", False), config.get("max_position_embeddings", 2048)
        return DecoderOnly(
            vocab_size=config["vocab_size"],
            dim=dim,
            n_layers=config["num_hidden_layers"],
            max_positions=positions,
            init_std=config.get("initializer_range", 0.02),
            norm=LayerNorm(eps=config.get("layer_norm_epsilon", 1e-5)),
            position=rope({"max_position_embeddings": positions, **config}),
            attention=Gqa(n_heads=heads, n_kv_heads=kv_heads(config), bias=bias),
            ffn=Mlp(
                hidden=config.get("ffn_hidden_size") or 4 * dim,
                activation=activation(config.get("activation") or "gelu"),
                bias=bias,
            ),
            block=block(config),
            embedding=Token(),
            head=Lm(tied=config.get("tie_word_embeddings", True)),
        )

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = decoder(spec)
        said(model.embedding, Token)
        attention = said(model.attention, Gqa, "n_kv_heads", "bias")
        ffn, heads = said(model.ffn, Mlp, bias=attention.bias), attention.n_kv_heads or attention.n_heads
        parallel = not isinstance(model.block, PreNorm)
        shared = not parallel or expect(model.block, Parallel).shared_norm
        new = not shared or heads not in (1, attention.n_heads)
        if new:
            expect(model.block, Parallel)
        return {
            "model_type": "falcon",
            "architectures": ["FalconForCausalLM"],
            "vocab_size": model.vocab_size,
            "hidden_size": model.dim,
            "num_hidden_layers": model.n_layers,
            "num_attention_heads": attention.n_heads,
            "num_kv_heads": heads,
            "multi_query": not new and heads == 1,
            "new_decoder_architecture": new,
            "num_ln_in_parallel_attn": (1 if shared else 2) if new else None,
            "parallel_attn": parallel,
            "bias": attention.bias,
            "ffn_hidden_size": ffn.hidden,
            "activation": activation_name(ffn.activation),
            "alibi": False,
            "max_position_embeddings": model.max_positions,
            **rope_config(model.position, model.max_positions),
            "layer_norm_epsilon": said(model.norm, LayerNorm, "eps").eps,
            "initializer_range": model.init_std,
            "tie_word_embeddings": said(model.head, Lm).tied,
        }

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = decoder(spec)
        attention = expect(model.attention, Gqa)
        heads, bias = attention.n_kv_heads or attention.n_heads, attention.bias
        yield same("embedding.weight", "transformer.word_embeddings.weight")
        for layer in range(model.n_layers):
            ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
            for name, other in norms(model.block).items():
                yield from linear(f"{ours}.{name}", f"{theirs}.{other}", bias=True)
            for kind in ("weight", "bias") if bias else ("weight",):
                qkv = [f"{ours}.attention.{name}.{kind}" for name in "qkv"]
                yield grouped(qkv, f"{theirs}.self_attention.query_key_value.{kind}", attention.n_heads, heads)
            yield from linear(f"{ours}.attention.o", f"{theirs}.self_attention.dense", bias)
            yield from linear(f"{ours}.ffn.up", f"{theirs}.mlp.dense_h_to_4h", bias)
            yield from linear(f"{ours}.ffn.down", f"{theirs}.mlp.dense_4h_to_h", bias)
        yield from linear("norm", "transformer.ln_f", bias=True)
        if not expect(model.head, Lm).tied:
            yield same("head.weight", "lm_head.weight")


def kv_heads(config: Config) -> int | None:
    """Of the newer architecture as said; of the older one, one or all. None: all."""
    if not config.get("new_decoder_architecture", False):
        return 1 if config.get("multi_query", True) else None
    heads = config.get("num_kv_heads")
    return None if heads == config["num_attention_heads"] else heads


def block(config: Config) -> BlockSpec:
    if config.get("new_decoder_architecture", False):
        refuse(config, parallel_attn=True)
        shared = config.get("num_ln_in_parallel_attn") == 1
        refuse(config, num_ln_in_parallel_attn=1 if shared else 2)
        return Parallel(shared_norm=shared)
    refuse(config, num_ln_in_parallel_attn=1)
    return Parallel(shared_norm=True) if config.get("parallel_attn", True) else PreNorm()


def norms(block: BlockSpec) -> dict[str, str]:
    """Of a block, ours and theirs."""
    if isinstance(block, PreNorm):
        return {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    if expect(block, Parallel).shared_norm:
        return {"attention_norm": "input_layernorm"}
    return {"attention_norm": "ln_attn", "ffn_norm": "ln_mlp"}
