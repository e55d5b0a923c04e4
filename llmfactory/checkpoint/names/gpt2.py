"""GPT-2 (Radford et al. 2019): q, k and v in one matrix, every matrix of a block stored as [in, out]."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, joined, linear, same, transposed
from llmfactory.checkpoint.names.reading import activation, activation_name, decoder, refuse, said, wanted
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import PreNorm
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Mlp
from llmfactory.model.head.spec import Lm
from llmfactory.model.norm.spec import LayerNorm
from llmfactory.model.position.spec import Learned
from llmfactory.model.spec import DecoderOnly, ModelSpec


class Gpt2(Family):
    types = ("gpt2",)
    ignored = (r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",)

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False, scale_attn_weights=True)
        return DecoderOnly(
            vocab_size=config["vocab_size"],
            dim=config["n_embd"],
            n_layers=config["n_layer"],
            max_positions=config["n_positions"],
            init_std=config.get("initializer_range", 0.02),
            norm=LayerNorm(eps=config.get("layer_norm_epsilon", 1e-5)),
            position=Learned(),
            attention=Gqa(n_heads=config["n_head"], bias=True),
            ffn=Mlp(
                hidden=config.get("n_inner") or 4 * config["n_embd"],
                activation=activation(config.get("activation_function", "gelu_new")),
            ),
            block=PreNorm(),
            embedding=Token(),
            head=Lm(tied=config.get("tie_word_embeddings", True)),
        )

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = decoder(spec, block=PreNorm)
        said(model.position, Learned)
        said(model.embedding, Token)
        attention = said(model.attention, Gqa, bias=True, n_kv_heads=(None, model.attention.n_heads))
        norm, ffn, head = said(model.norm, LayerNorm, "eps"), said(model.ffn, Mlp), said(model.head, Lm)
        return {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "vocab_size": model.vocab_size,
            "n_embd": model.dim,
            "n_layer": model.n_layers,
            "n_head": attention.n_heads,
            "n_positions": model.max_positions,
            "n_inner": ffn.hidden,
            "activation_function": activation_name(ffn.activation),
            "layer_norm_epsilon": norm.eps,
            "initializer_range": model.init_std,
            "tie_word_embeddings": head.tied,
        }

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = wanted(spec, DecoderOnly)
        assert isinstance(model.head, Lm)
        yield same("embedding.weight", "transformer.wte.weight")
        yield same("position.weight", "transformer.wpe.weight")
        for layer in range(model.n_layers):
            yield from block_entries(f"blocks.{layer}", f"transformer.h.{layer}", model.dim)
        yield from linear("norm", "transformer.ln_f", bias=True)
        if not model.head.tied:
            yield same("head.weight", "lm_head.weight")


def block_entries(ours: str, theirs: str, dim: int) -> Iterator[Entry]:
    """Tensors of one block."""
    yield from linear(f"{ours}.attention_norm", f"{theirs}.ln_1", bias=True)
    yield from linear(f"{ours}.ffn_norm", f"{theirs}.ln_2", bias=True)
    for kind in ("weight", "bias"):
        qkv = [f"{ours}.attention.{name}.{kind}" for name in "qkv"]
        yield joined(qkv, f"{theirs}.attn.c_attn.{kind}", [dim] * 3, flipped=True)
    for name, other in (("attention.o", "attn.c_proj"), ("ffn.up", "mlp.c_fc"), ("ffn.down", "mlp.c_proj")):
        yield transposed(f"{ours}.{name}.weight", f"{theirs}.{other}.weight")
        yield same(f"{ours}.{name}.bias", f"{theirs}.{other}.bias")
