"""LLaMA (Touvron et al. 2023), and what the many that share its tensors' names have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, linear, same
from llmfactory.checkpoint.names.reading import activation, activation_name, decoder, expect, head_width, refuse, said
from llmfactory.checkpoint.names.rope import rope, rope_config
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import PreNorm
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Glu
from llmfactory.model.head.spec import Lm
from llmfactory.model.norm.spec import RmsNorm
from llmfactory.model.spec import DecoderOnly, ModelSpec


class Llama(Family):
    types = ("llama",)
    ignored = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, pretraining_tp=1)
        attention = attention_of(config, bias=config.get("attention_bias", False))
        return llama_spec(config, attention=attention, ffn=ffn_of(config, bias=config.get("mlp_bias", False)))

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = decoder(spec)
        attention, ffn = said(model.attention, Gqa, *HEADS, "bias"), said(model.ffn, Glu, "bias")
        says = {"attention_bias": attention.bias, "mlp_bias": ffn.bias}
        return {**llama_config(model, "llama", "LlamaForCausalLM"), **rope_config(model.position, model.max_positions), **says}

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        return llama_entries(decoder(spec))


HEADS = ("n_kv_heads", "head_dim")
"""Fields of Gqa that `attention_of` reads and `llama_config` writes."""


def attention_of(config: Config, **fields: Any) -> Gqa:
    """Heads and their width; other fields as given."""
    n_heads, n_kv_heads = config["num_attention_heads"], config.get("num_key_value_heads")
    return Gqa(
        n_heads=n_heads,
        n_kv_heads=None if n_kv_heads == n_heads else n_kv_heads,
        head_dim=head_width(config["hidden_size"], n_heads, config.get("head_dim")),
        **fields,
    )


def ffn_of(config: Config, **fields: Any) -> Glu:
    return Glu(hidden=config["intermediate_size"], activation=activation(config.get("hidden_act", "silu")), **fields)


def llama_spec(config: Config, **others: Any) -> DecoderOnly:
    """LLaMA's parts but those given."""
    parts: dict[str, Any] = {
        "norm": RmsNorm(eps=config.get("rms_norm_eps", 1e-6)),
        "block": PreNorm(),
        "embedding": Token(),
        "head": Lm(tied=config.get("tie_word_embeddings", False)),
        **others,
    }
    for name, of in (("attention", attention_of), ("ffn", ffn_of), ("position", rope)):
        if name not in parts:
            parts[name] = of(config)
    return DecoderOnly(
        vocab_size=config["vocab_size"],
        dim=config["hidden_size"],
        n_layers=config["num_hidden_layers"],
        max_positions=config["max_position_embeddings"],
        init_std=config.get("initializer_range", 0.02),
        **parts,
    )


def llama_config(model: DecoderOnly, kind: str, architecture: str) -> dict[str, Any]:
    """What those with LLaMA's norm, block, embedding and head say; of attention and feed-forward the sizes only."""
    expect(model.block, PreNorm)
    said(model.embedding, Token)
    said(model.norm, RmsNorm, "eps")
    said(model.head, Lm)
    return sizes(model, kind, architecture)


def sizes(model: DecoderOnly, kind: str, architecture: str) -> dict[str, Any]:
    """Keys of sizes, under the names that most families use."""
    attention, ffn, norm = expect(model.attention, Gqa), expect(model.ffn, Glu), expect(model.norm, RmsNorm)
    return {
        "model_type": kind,
        "architectures": [architecture],
        "vocab_size": model.vocab_size,
        "hidden_size": model.dim,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads or attention.n_heads,
        "head_dim": attention.head_width(model.dim),
        "intermediate_size": ffn.hidden,
        "hidden_act": activation_name(ffn.activation),
        "max_position_embeddings": model.max_positions,
        "rms_norm_eps": norm.eps,
        "initializer_range": model.init_std,
        "tie_word_embeddings": expect(model.head, Lm).tied,
    }


def llama_entries(model: DecoderOnly) -> Iterator[Entry]:
    """Every tensor of a pre-norm decoder with separate q, k and v and a gated feed-forward."""
    yield same("embedding.weight", "model.embed_tokens.weight")
    for layer in range(model.n_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        yield from attention_entries(ours, theirs, expect(model.attention, Gqa))
        yield from linear(f"{ours}.attention_norm", f"{theirs}.input_layernorm", bias=False)
        yield from linear(f"{ours}.ffn_norm", f"{theirs}.post_attention_layernorm", bias=False)
        yield from ffn_entries(ours, theirs, expect(model.ffn, Glu))
    yield from end_entries(model)


def attention_entries(ours: str, theirs: str, attention: Gqa) -> Iterator[Entry]:
    """Four matrices, their biases, and the norms of queries and keys."""
    qkv_bias = attention.bias if attention.qkv_bias is None else attention.qkv_bias
    for name in "qkvo":
        bias = attention.bias if name == "o" else qkv_bias
        yield from linear(f"{ours}.attention.{name}", f"{theirs}.self_attn.{name}_proj", bias)
    if attention.qk_norm is not None:
        for name in "qk":
            yield same(f"{ours}.attention.{name}_norm.weight", f"{theirs}.self_attn.{name}_norm.weight")


def ffn_entries(ours: str, theirs: str, ffn: Glu) -> Iterator[Entry]:
    for name in ("gate", "up", "down"):
        yield from linear(f"{ours}.ffn.{name}", f"{theirs}.mlp.{name}_proj", ffn.bias)


def end_entries(model: DecoderOnly) -> Iterator[Entry]:
    """The last norm, and the head's matrix where it is its own."""
    yield same("norm.weight", "model.norm.weight")
    if not expect(model.head, Lm).tied:
        yield same("head.weight", "lm_head.weight")
