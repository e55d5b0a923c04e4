"""LLaMA (Touvron et al. 2023) and those that share its tensors' names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, linear, same
from llmfactory.checkpoint.names.reading import activation, activation_name, expect, refuse, wanted
from llmfactory.core.errors import UserError
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import PreNorm
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Glu
from llmfactory.model.head.spec import Lm
from llmfactory.model.norm.spec import RmsNorm
from llmfactory.model.position.spec import Rope
from llmfactory.model.spec import DecoderOnly, ModelSpec


class Llama(Family):
    types = ("llama",)
    ignored = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, pretraining_tp=1, mlp_bias=False)
        return DecoderOnly(
            vocab_size=config["vocab_size"],
            dim=config["hidden_size"],
            n_layers=config["num_hidden_layers"],
            max_positions=config["max_position_embeddings"],
            init_std=config.get("initializer_range", 0.02),
            norm=RmsNorm(eps=config.get("rms_norm_eps", 1e-6)),
            position=rope(config),
            attention=Gqa(
                n_heads=config["num_attention_heads"],
                n_kv_heads=config.get("num_key_value_heads"),
                bias=config.get("attention_bias", False),
            ),
            ffn=Glu(hidden=config["intermediate_size"], activation=activation(config.get("hidden_act", "silu"))),
            block=PreNorm(),
            embedding=Token(),
            head=Lm(tied=config.get("tie_word_embeddings", False)),
        )

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = wanted(spec, DecoderOnly, position=Rope, block=PreNorm, embedding=Token)
        norm, ffn, head = expect(model.norm, RmsNorm), expect(model.ffn, Glu, bias=False), expect(model.head, Lm, bias=False)
        attention, position = expect(model.attention, Gqa), expect(model.position, Rope)
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": model.vocab_size,
            "hidden_size": model.dim,
            "num_hidden_layers": model.n_layers,
            "num_attention_heads": attention.n_heads,
            "num_key_value_heads": attention.n_kv_heads or attention.n_heads,
            "attention_bias": attention.bias,
            "intermediate_size": ffn.hidden,
            "hidden_act": activation_name(ffn.activation),
            "max_position_embeddings": model.max_positions,
            "rms_norm_eps": norm.eps,
            "rope_theta": position.theta,
            "initializer_range": model.init_std,
            "tie_word_embeddings": head.tied,
        }

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = wanted(spec, DecoderOnly)
        assert isinstance(model.head, Lm)
        assert isinstance(model.attention, Gqa)
        yield same("embedding.weight", "model.embed_tokens.weight")
        for layer in range(model.n_layers):
            ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
            yield from linear(f"{ours}.attention_norm", f"{theirs}.input_layernorm", bias=False)
            for name in "qkvo":
                yield from linear(f"{ours}.attention.{name}", f"{theirs}.self_attn.{name}_proj", model.attention.bias)
            yield from linear(f"{ours}.ffn_norm", f"{theirs}.post_attention_layernorm", bias=False)
            for name in ("gate", "up", "down"):
                yield same(f"{ours}.ffn.{name}.weight", f"{theirs}.mlp.{name}_proj.weight")
        yield from linear("norm", "model.norm", bias=False)
        if not model.head.tied:
            yield same("head.weight", "lm_head.weight")


def rope(config: Config) -> Rope:
    """Of `rope_theta`, or of the newer `rope_parameters`."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise UserError(f"rope_type={kind!r} in config.json has no counterpart here")
    return Rope(theta=float(parameters.get("rope_theta") or config.get("rope_theta") or 10000.0))
