"""ChatGLM-6B and ChatGLM2-6B (Zeng et al. 2022; GLM team 2024), published with code of their own under one `model_type`.

ChatGLM-6B is GLM-130B in small: DeepNorm, a two-way prefix, two positions a token. Its code writes the norm of each sub-layer's
output at the start of the next one, so that its first norm is ours of the embeddings and its last norm closes our last block.
ChatGLM2 is a LLaMA with two key/value heads, biases of queries, keys and values, and half of each head rotated in pairs of
neighbors. Its config says `multi_query_attention`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, Inexpressible, grouped, joined, linear, same
from llmfactory.checkpoint.names.reading import decoder, expect, head_width, refuse, said
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import DeepNorm, PreNorm
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Activation, Glu, Mlp
from llmfactory.model.head.spec import Lm
from llmfactory.model.norm.spec import LayerNorm, RmsNorm
from llmfactory.model.position.spec import Rope, Rope2d
from llmfactory.model.spec import DecoderOnly, ModelSpec

DEEP = {"power": 0.5, "beta_layers": 2.0}
"""Of DeepNorm, in GLM-130B and ChatGLM-6B."""
FIRST, SECOND = "transformer.layers", "transformer.encoder.layers"
"""Where the blocks of each generation are."""


class ChatGlm(Family):
    types = ("chatglm",)
    own_code = True
    ignored = (r"transformer\.layers\.\d+\.attention\.rotary_emb\.inv_freq", r"transformer\.rotary_pos_emb\.inv_freq")

    def spec(self, config: Config) -> ModelSpec:
        return second(config) if "multi_query_attention" in config else first(config)

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        deep = isinstance(spec, DecoderOnly) and isinstance(spec.block, DeepNorm)
        return first_config(decoder(spec, "embedding_norm")) if deep else second_config(decoder(spec))

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = decoder(spec, "embedding_norm")
        return first_entries(model) if isinstance(model.block, DeepNorm) else second_entries(model)


def first(config: Config) -> DecoderOnly:
    refuse(config, position_encoding_2d=True, quantization_bit=0, pre_seq_len=0, prefix_projection=False)
    dim = config["hidden_size"]
    return DecoderOnly(
        vocab_size=config["vocab_size"],
        dim=dim,
        n_layers=config["num_layers"],
        max_positions=config["max_sequence_length"],
        norm=LayerNorm(eps=config.get("layernorm_epsilon", 1e-5)),
        position=Rope2d(),
        attention=Gqa(n_heads=config["num_attention_heads"], bias=True),
        ffn=Mlp(hidden=config.get("inner_hidden_size") or 4 * dim, activation=Activation.gelu_tanh),
        block=DeepNorm(**DEEP),
        embedding=Token(),
        embedding_norm=True,
        head=Lm(tied=config.get("tie_word_embeddings", True)),
    )


def first_config(model: DecoderOnly) -> dict[str, Any]:
    expect(model, DecoderOnly, embedding_norm=True)
    said(model.block, DeepNorm, **DEEP)
    said(model.position, Rope2d)
    said(model.embedding, Token)
    return {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "vocab_size": model.vocab_size,
        "hidden_size": model.dim,
        "num_layers": model.n_layers,
        "num_attention_heads": said(model.attention, Gqa, bias=True, n_kv_heads=(None, model.attention.n_heads)).n_heads,
        "inner_hidden_size": said(model.ffn, Mlp, activation=Activation.gelu_tanh).hidden,
        "max_sequence_length": model.max_positions,
        "layernorm_epsilon": said(model.norm, LayerNorm, "eps").eps,
        "position_encoding_2d": True,
        "tie_word_embeddings": said(model.head, Lm).tied,
    }


def first_entries(model: DecoderOnly) -> Iterator[Entry]:
    heads = model.attention.n_heads
    yield same("embedding.weight", "transformer.word_embeddings.weight")
    yield from linear("embedding_norm", f"{FIRST}.0.input_layernorm", bias=True)
    for layer in range(model.n_layers):
        ours, theirs = f"blocks.{layer}", f"{FIRST}.{layer}"
        for kind in ("weight", "bias"):
            qkv = [f"{ours}.attention.{name}.{kind}" for name in "qkv"]
            yield grouped(qkv, f"{theirs}.attention.query_key_value.{kind}", heads, heads)
        yield from linear(f"{ours}.attention.o", f"{theirs}.attention.dense", bias=True)
        yield from linear(f"{ours}.attention_norm", f"{theirs}.post_attention_layernorm", bias=True)
        yield from linear(f"{ours}.ffn.up", f"{theirs}.mlp.dense_h_to_4h", bias=True)
        yield from linear(f"{ours}.ffn.down", f"{theirs}.mlp.dense_4h_to_h", bias=True)
        last = layer + 1 == model.n_layers
        after = "transformer.final_layernorm" if last else f"{FIRST}.{layer + 1}.input_layernorm"
        yield from linear(f"{ours}.ffn_norm", after, bias=True)
    if not expect(model.head, Lm).tied:
        yield same("head.weight", "lm_head.weight")


def second(config: Config) -> DecoderOnly:
    refuse(config, apply_residual_connection_post_layernorm=False, post_layer_norm=True, rmsnorm=True, add_bias_linear=False)
    refuse(config, quantization_bit=0, pre_seq_len=0, prefix_projection=False, rope_ratio=1, original_rope=True)
    dim, heads, kv_heads = config["hidden_size"], config["num_attention_heads"], config["multi_query_group_num"]
    return DecoderOnly(
        vocab_size=config["padded_vocab_size"],
        dim=dim,
        n_layers=config["num_layers"],
        max_positions=config["seq_length"],
        norm=RmsNorm(eps=config.get("layernorm_epsilon", 1e-5)),
        position=Rope(share=0.5, interleaved=True),
        attention=Gqa(
            n_heads=heads,
            n_kv_heads=kv_heads if config["multi_query_attention"] else None,
            head_dim=head_width(dim, heads, config.get("kv_channels")),
            qkv_bias=config.get("add_qkv_bias", False),
        ),
        ffn=Glu(hidden=config["ffn_hidden_size"], activation=Activation.silu),
        block=PreNorm(),
        embedding=Token(),
        head=Lm(tied=False),
    )


def second_config(model: DecoderOnly) -> dict[str, Any]:
    expect(model.block, PreNorm)
    said(model.position, Rope, share=0.5, interleaved=True)
    said(model.embedding, Token)
    said(model.head, Lm, tied=False)
    attention = said(model.attention, Gqa, "n_kv_heads", "head_dim", "qkv_bias")
    if attention.qkv_bias is None:
        raise Inexpressible("it does not say whether queries, keys and values have biases (qkv_bias)")
    return {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "padded_vocab_size": model.vocab_size,
        "hidden_size": model.dim,
        "num_layers": model.n_layers,
        "num_attention_heads": attention.n_heads,
        "multi_query_attention": attention.n_kv_heads is not None,
        "multi_query_group_num": attention.n_kv_heads or attention.n_heads,
        "kv_channels": attention.head_width(model.dim),
        "add_qkv_bias": attention.qkv_bias,
        "add_bias_linear": False,
        "ffn_hidden_size": said(model.ffn, Glu, activation=Activation.silu).hidden,
        "seq_length": model.max_positions,
        "layernorm_epsilon": said(model.norm, RmsNorm, "eps").eps,
        "rmsnorm": True,
        "post_layer_norm": True,
        "apply_residual_connection_post_layernorm": False,
        "original_rope": True,
        "tie_word_embeddings": False,
    }


def second_entries(model: DecoderOnly) -> Iterator[Entry]:
    attention, hidden = expect(model.attention, Gqa), model.ffn.hidden
    width = attention.head_width(model.dim)
    heads = [attention.n_heads, attention.n_kv_heads or attention.n_heads]
    sizes = [heads[0] * width, heads[1] * width, heads[1] * width]
    yield same("embedding.weight", "transformer.embedding.word_embeddings.weight")
    for layer in range(model.n_layers):
        ours, theirs = f"blocks.{layer}", f"{SECOND}.{layer}"
        yield same(f"{ours}.attention_norm.weight", f"{theirs}.input_layernorm.weight")
        for kind in ("weight", "bias") if attention.qkv_bias else ("weight",):
            qkv = [f"{ours}.attention.{name}.{kind}" for name in "qkv"]
            yield joined(qkv, f"{theirs}.self_attention.query_key_value.{kind}", sizes)
        yield same(f"{ours}.attention.o.weight", f"{theirs}.self_attention.dense.weight")
        yield same(f"{ours}.ffn_norm.weight", f"{theirs}.post_attention_layernorm.weight")
        both = [f"{ours}.ffn.gate.weight", f"{ours}.ffn.up.weight"]
        yield joined(both, f"{theirs}.mlp.dense_h_to_4h.weight", [hidden, hidden])
        yield same(f"{ours}.ffn.down.weight", f"{theirs}.mlp.dense_4h_to_h.weight")
    yield same("norm.weight", "transformer.encoder.final_layernorm.weight")
    yield same("head.weight", "transformer.output_layer.weight")
