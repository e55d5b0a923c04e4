"""Qwen-MoE (Qwen Team 2024): many narrow experts and a gated shared one; layers without a mixture may stand between."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, Inexpressible, same
from llmfactory.checkpoint.names.llama import HEADS, attention_of, end_entries, ffn_entries, ffn_of, llama_config, llama_spec
from llmfactory.checkpoint.names.mixtral import dense, expert_entries, layer_entries, pooled, share
from llmfactory.checkpoint.names.reading import activation, decoder, expect, refuse, said
from llmfactory.checkpoint.names.rope import rope_config
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.ffn.spec import Glu, Moe
from llmfactory.model.spec import BASE, DecoderOnly, LayerSpec, ModelSpec

PARTS = ("gate", "up", "down")
DENSE = "dense"
"""Kind of the layers without a mixture."""


class Qwen2Moe(Family):
    types = ("qwen2_moe",)

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, use_sliding_window=False)
        n_layers = config["num_hidden_layers"]
        step, plain = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or []
        pattern = [DENSE if layer in plain or (layer + 1) % step else BASE for layer in range(n_layers)]
        return llama_spec(
            config,
            attention=attention_of(config, qkv_bias=config.get("qkv_bias", True)),
            ffn=Moe(
                hidden=config["moe_intermediate_size"],
                n_experts=config["num_experts"],
                k=config["num_experts_per_tok"],
                activation=activation(config.get("hidden_act", "silu")),
                gated=True,
                normalize=config.get("norm_topk_prob", False),
                shared_hidden=config["shared_expert_intermediate_size"],
                shared_gate=True,
                balance=share(config.get("router_aux_loss_coef", 0.001), max(1, pattern.count(BASE))),
            ),
            **between(pattern, ffn_of(config)),
        )

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = decoder(spec, "others", "pattern")
        attention = said(model.attention, Gqa, *HEADS, "qkv_bias")
        ffn = said(model.ffn, Moe, "balance", "balance_over", "normalize", "shared_hidden", gated=True, shared_gate=True)
        plain, hidden = dense_layers(model, ffn)
        return {
            **llama_config(dense(model, hidden), "qwen2_moe", "Qwen2MoeForCausalLM"),
            **rope_config(model.position, model.max_positions),
            "qkv_bias": attention.qkv_biased,
            "mlp_only_layers": plain,
            "decoder_sparse_step": 1,
            "moe_intermediate_size": ffn.hidden,
            "shared_expert_intermediate_size": ffn.shared_hidden,
            "num_experts": ffn.n_experts,
            "num_experts_per_tok": ffn.k,
            "norm_topk_prob": ffn.normalize,
            "router_aux_loss_coef": pooled(ffn.balance, max(1, model.n_layers - len(plain))),
        }

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = decoder(spec, "others", "pattern")
        yield same("embedding.weight", "model.embed_tokens.weight")
        for layer, kind in enumerate(model.kinds()):
            ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
            yield from layer_entries(ours, theirs, expect(kind.attention, Gqa))
            if isinstance(kind.ffn, Glu):
                yield from ffn_entries(ours, theirs, kind.ffn)
            else:
                yield from moe_entries(ours, theirs, expect(kind.ffn, Moe), "shared_expert")
        yield from end_entries(model)


def between(pattern: list[str], ffn: Glu) -> dict[str, Any]:
    """`others` and `pattern` of a decoder whose layers named DENSE have this part; nothing where there are none."""
    return {"others": {DENSE: LayerSpec(ffn=ffn)}, "pattern": pattern} if DENSE in pattern else {}


def dense_layers(model: DecoderOnly, ffn: Moe) -> tuple[list[int], int]:
    """Numbers of the layers without a mixture, and the width of their hidden layers (an expert's where there are none)."""
    kinds = [kind.ffn for kind in model.kinds()]
    plain = [layer for layer, kind in enumerate(kinds) if kind != ffn]
    hidden = {said(kinds[layer], Glu, activation=ffn.activation).hidden for layer in plain} or {ffn.hidden}
    if len(hidden) > 1:
        raise Inexpressible(f"its layers without experts have several widths, {sorted(hidden)}")
    if any(kind.attention != model.attention for kind in model.kinds()):
        raise Inexpressible("its layers differ in their attention")
    return plain, hidden.pop()


def moe_entries(ours: str, theirs: str, ffn: Moe, shared: str) -> Iterator[Entry]:
    """Router, experts and, under the name that the family has for it, the shared part."""
    names = {name: f"{name}_proj" for name in PARTS}
    yield same(f"{ours}.ffn.router.weight", f"{theirs}.mlp.gate.weight")
    yield from expert_entries(ours, f"{theirs}.mlp.experts", ffn.n_experts, names)
    if ffn.shared_hidden:
        for name, other in names.items():
            yield same(f"{ours}.ffn.shared.{name}.weight", f"{theirs}.mlp.{shared}.{other}.weight")
    if ffn.shared_gate:
        yield same(f"{ours}.ffn.shared_gate.weight", f"{theirs}.mlp.{shared}_gate.weight")
