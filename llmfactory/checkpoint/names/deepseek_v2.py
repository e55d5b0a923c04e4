"""DeepSeek-V2 (DeepSeek-AI 2024): latent attention, many narrow experts and shared ones, the first layers without experts.

YaRN's growth of the scores' scale (mscale_all_dim) is a number of the attention part here, not of the positions. Their balance loss is
of each sequence and divides by the number of chosen experts (aux_loss_alpha).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, Inexpressible, linear, same
from llmfactory.checkpoint.names.llama import end_entries, ffn_entries, ffn_of, llama_config, llama_spec
from llmfactory.checkpoint.names.mixtral import dense, pooled, share
from llmfactory.checkpoint.names.qwen2_moe import DENSE, between, dense_layers, moe_entries
from llmfactory.checkpoint.names.reading import activation, decoder, expect, refuse, said
from llmfactory.checkpoint.names.rope import rope, rope_config
from llmfactory.model.attention.spec import Gqa, Mla
from llmfactory.model.ffn.spec import Glu, Moe
from llmfactory.model.spec import BASE, ModelSpec

WIDTHS = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
"""Fields of Mla that have the same names in their config."""


class DeepseekV2(Family):
    types = ("deepseek_v2",)

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, topk_method="greedy", norm_topk_prob=False, scoring_func="softmax", moe_layer_freq=1, seq_aux=True)
        refuse(config, mlp_bias=False, pretraining_tp=1)
        first, n_layers, k = config.get("first_k_dense_replace", 0), config["num_hidden_layers"], config["num_experts_per_tok"]
        return llama_spec(
            config,
            position=rope(config, interleaved=True),
            attention=Mla(
                n_heads=config["num_attention_heads"],
                **{name: config[name] for name in WIDTHS},
                bias=config.get("attention_bias", False),
                scale=scale(config),
            ),
            ffn=Moe(
                hidden=config["moe_intermediate_size"],
                n_experts=config["n_routed_experts"],
                k=k,
                activation=activation(config.get("hidden_act", "silu")),
                gated=True,
                normalize=False,
                scale=config.get("routed_scaling_factor", 1.0),
                shared_hidden=config["moe_intermediate_size"] * config["n_shared_experts"],
                balance=share(config.get("aux_loss_alpha", 0.001), k),
            ),
            **between([DENSE] * first + [BASE] * (n_layers - first), ffn_of(config)),
        )

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = decoder(spec, "others", "pattern")
        attention = said(model.attention, Mla, *WIDTHS, "bias", "scale")
        ffn = said(model.ffn, Moe, "balance", "scale", "shared_hidden", gated=True, normalize=False)
        if ffn.shared_hidden % ffn.hidden or not ffn.shared_hidden:
            raise Inexpressible(f"its shared part is {ffn.shared_hidden} wide, no multiple of an expert's {ffn.hidden}")
        plain, hidden = dense_layers(model, ffn)
        if plain != list(range(len(plain))):
            raise Inexpressible("layers without experts stand behind layers with them")
        sizes = dataclasses.replace(
            dense(model, hidden), attention=Gqa(n_heads=attention.n_heads, head_dim=attention.qk_rope_head_dim)
        )
        rotary = rope_config(model.position, model.max_positions, interleaved=True)
        return {
            **llama_config(sizes, "deepseek_v2", "DeepseekV2ForCausalLM"),
            **with_growth(rotary, attention),
            **{name: getattr(attention, name) for name in WIDTHS},
            "attention_bias": attention.bias,
            "first_k_dense_replace": len(plain),
            "moe_intermediate_size": ffn.hidden,
            "n_routed_experts": ffn.n_experts,
            "n_shared_experts": ffn.shared_hidden // ffn.hidden,
            "num_experts_per_tok": ffn.k,
            "norm_topk_prob": False,
            "routed_scaling_factor": ffn.scale,
            "topk_method": "greedy",
            "aux_loss_alpha": pooled(ffn.balance, ffn.k),
        }

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = decoder(spec, "others", "pattern")
        yield same("embedding.weight", "model.embed_tokens.weight")
        for layer, kind in enumerate(model.kinds()):
            ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
            yield from attention_entries(f"{ours}.attention", f"{theirs}.self_attn", expect(kind.attention, Mla))
            yield from linear(f"{ours}.attention_norm", f"{theirs}.input_layernorm", bias=False)
            yield from linear(f"{ours}.ffn_norm", f"{theirs}.post_attention_layernorm", bias=False)
            if isinstance(kind.ffn, Glu):
                yield from ffn_entries(ours, theirs, kind.ffn)
            else:
                yield from moe_entries(ours, theirs, expect(kind.ffn, Moe), "shared_experts")
        yield from end_entries(model)


def attention_entries(ours: str, theirs: str, attention: Mla) -> Iterator[Entry]:
    if attention.q_lora_rank is None:
        yield same(f"{ours}.q.weight", f"{theirs}.q_proj.weight")
    else:
        yield from linear(f"{ours}.q_down", f"{theirs}.q_a_proj", attention.bias)
        yield same(f"{ours}.q_norm.weight", f"{theirs}.q_a_layernorm.weight")
        yield same(f"{ours}.q.weight", f"{theirs}.q_b_proj.weight")
    yield from linear(f"{ours}.kv_down", f"{theirs}.kv_a_proj_with_mqa", attention.bias)
    yield same(f"{ours}.kv_norm.weight", f"{theirs}.kv_a_layernorm.weight")
    yield same(f"{ours}.kv.weight", f"{theirs}.kv_b_proj.weight")
    yield from linear(f"{ours}.o", f"{theirs}.o_proj", attention.bias)


def scale(config: Config) -> float | None:
    """Of the scores, where a stretch of the positions grows it; None: the usual one."""
    stretch = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind, growth = stretch.get("rope_type", stretch.get("type", "default")), stretch.get("mscale_all_dim")
    if kind == "default" or not growth or stretch["factor"] <= 1:
        return None
    width = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    return float((0.1 * growth * math.log(stretch["factor"]) + 1) ** 2 / math.sqrt(width))


def with_growth(rotary: dict[str, Any], attention: Mla) -> dict[str, Any]:
    """The keys of positions with the growth that gives the attention part's scale."""
    if attention.scale is None:
        return rotary
    stretch = rotary.get("rope_scaling")
    if not stretch or stretch.get("factor", 1.0) <= 1:
        raise Inexpressible(f"its scores have a scale of their own, {attention.scale}, and its positions are not stretched")
    width = attention.qk_nope_head_dim + attention.qk_rope_head_dim
    growth = (math.sqrt(attention.scale * math.sqrt(width)) - 1) / (0.1 * math.log(stretch["factor"]))
    return {**rotary, "rope_scaling": {**stretch, "mscale_all_dim": float(f"{growth:.12g}")}}
