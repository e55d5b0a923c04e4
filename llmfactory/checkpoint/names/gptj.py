"""GPT-J (Wang and Komatsuzaki 2021): attention and feed-forward side by side after one norm; neighbors are rotated in pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, linear, same
from llmfactory.checkpoint.names.reading import activation, activation_name, decoder, expect, refuse, said
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import Parallel
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Mlp
from llmfactory.model.head.spec import Lm
from llmfactory.model.norm.spec import LayerNorm
from llmfactory.model.position.spec import Rope
from llmfactory.model.spec import DecoderOnly, ModelSpec


class Gptj(Family):
    types = ("gptj",)
    ignored = (r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias|embed_positions)",)

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, tie_word_embeddings=False, rotary=True, scale_attn_weights=True)
        return gptj_spec(config)

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        return gptj_config(decoder(spec), "gptj", "GPTJForCausalLM")

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = decoder(spec)
        yield from ends(model)
        for layer in range(model.n_layers):
            ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
            for name, other in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj")):
                yield same(f"{ours}.attention.{name}.weight", f"{theirs}.attn.{other}.weight")
            yield from norm_and_ffn(ours, theirs)


def gptj_spec(config: Config) -> DecoderOnly:
    """Also of CodeGen."""
    dim, n_heads = config["n_embd"], config["n_head"]
    return DecoderOnly(
        vocab_size=config["vocab_size"],
        dim=dim,
        n_layers=config["n_layer"],
        max_positions=config["n_positions"],
        init_std=config.get("initializer_range", 0.02),
        norm=LayerNorm(eps=config.get("layer_norm_epsilon", 1e-5)),
        position=Rope(share=config.get("rotary_dim", 64) * n_heads / dim, interleaved=True),
        attention=Gqa(n_heads=n_heads),
        ffn=Mlp(hidden=config.get("n_inner") or 4 * dim, activation=activation(config.get("activation_function", "gelu_new"))),
        block=Parallel(shared_norm=True),
        embedding=Token(),
        head=Lm(tied=False, bias=True),
    )


def gptj_config(model: DecoderOnly, kind: str, architecture: str) -> dict[str, Any]:
    expect(model.block, Parallel, shared_norm=True)
    said(model.embedding, Token)
    said(model.head, Lm, tied=False, bias=True)
    attention = said(model.attention, Gqa, n_kv_heads=(None, model.attention.n_heads))
    position, ffn = said(model.position, Rope, "share", theta=10000.0, interleaved=True), said(model.ffn, Mlp)
    return {
        "model_type": kind,
        "architectures": [architecture],
        "vocab_size": model.vocab_size,
        "n_embd": model.dim,
        "n_layer": model.n_layers,
        "n_head": attention.n_heads,
        "n_positions": model.max_positions,
        "rotary_dim": position.rotated(attention.head_width(model.dim)),
        "n_inner": ffn.hidden,
        "activation_function": activation_name(ffn.activation),
        "layer_norm_epsilon": said(model.norm, LayerNorm, "eps").eps,
        "initializer_range": model.init_std,
        "tie_word_embeddings": False,
    }


def ends(model: DecoderOnly) -> Iterator[Entry]:
    """What is no block."""
    yield same("embedding.weight", "transformer.wte.weight")
    yield from linear("norm", "transformer.ln_f", bias=True)
    yield from linear("head", "lm_head", bias=True)


def norm_and_ffn(ours: str, theirs: str) -> Iterator[Entry]:
    yield from linear(f"{ours}.attention_norm", f"{theirs}.ln_1", bias=True)
    yield from linear(f"{ours}.ffn.up", f"{theirs}.mlp.fc_in", bias=True)
    yield from linear(f"{ours}.ffn.down", f"{theirs}.mlp.fc_out", bias=True)
