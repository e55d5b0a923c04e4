"""Switch Transformers (Fedus et al. 2021): T5 with experts in every so many-th layer.

What a token goes through is the same as in `transformers`, capacity included, which is counted in each row. Two things differ:
padding takes no room at an expert here, which is seen where padding stands before the text and an expert is full; and the balance
loss of `transformers` pools the layers of a side, ours is a sum over them, so `balance` is a layer's share of their coefficient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, Inexpressible, same, stacked
from llmfactory.checkpoint.names.reading import activation, activation_name, expect, refuse, said, wanted
from llmfactory.checkpoint.names.t5 import attention_entries, blocks, config_of, model, outer_entries, tower
from llmfactory.core.errors import UserError
from llmfactory.model.ffn.spec import Mlp, Switch
from llmfactory.model.head.spec import Lm
from llmfactory.model.spec import BASE, EncoderDecoder, LayerSpec, ModelSpec, TowerSpec

SPARSE = "moe"
"""Our name of the layers with experts, where others have none."""


class SwitchTransformers(Family):
    types = ("switch_transformers",)
    ignored = (r"(encoder|decoder)\.embed_tokens\.weight",)

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, is_decoder=False, add_cross_attention=False, router_bias=False, router_dtype="float32")
        refuse(config, router_ignore_padding_tokens=False)
        n_decoder_layers = config.get("num_decoder_layers") or config["num_layers"]
        encoder = with_experts(config, tower(config, config["num_layers"], dense(config)), config["num_sparse_encoder_layers"])
        decoder = tower(config, n_decoder_layers, dense(config), cross=True)
        decoder = with_experts(config, decoder, config["num_sparse_decoder_layers"])
        tied = config.get("tie_word_embeddings", True)
        return model(config, encoder, decoder, tied, scaled=tied)

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        both = wanted(spec, EncoderDecoder)
        said_by_t5 = config_of(both, "switch_transformers", "SwitchTransformersForConditionalGeneration")
        head = expect(both.head, Lm)
        if (head.dim_power != 0) != head.tied:
            raise Inexpressible("its logits are scaled, but not tied, or the other way round")
        first, second = experts_of(both.encoder), experts_of(both.decoder)
        if dataclasses.replace(second, balance=first.balance, z=first.z) != first or first.capacity is None:
            raise Inexpressible("the experts of its encoder and of its decoder differ, or have no fixed capacity")
        said(first, Switch, "n_experts", "activation", "capacity", "balance", "z", "jitter", gated=False)
        sparse = {name: sparse_layers(side) for name, side in (("encoder", both.encoder), ("decoder", both.decoder))}
        counts = [sum(isinstance(kind.ffn, Switch) for kind in side.kinds()) for side in (both.encoder, both.decoder)]
        weights = [(pooled(ffn.balance, count), pooled(ffn.z, count)) for ffn, count in zip((first, second), counts, strict=True)]
        if weights[0] != weights[1]:
            raise Inexpressible("the losses of its encoder's and of its decoder's routers weigh differently")
        return {
            **said_by_t5,
            "d_ff": first.hidden,
            "dense_act_fn": activation_name(first.activation),
            "num_experts": first.n_experts,
            "expert_capacity": first.capacity,
            **{f"num_sparse_{name}_layers": count for name, count in sparse.items()},
            "router_jitter_noise": first.jitter,
            "router_aux_loss_coef": weights[0][0],
            "router_z_loss_coef": weights[0][1],
        }

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        both = wanted(spec, EncoderDecoder)
        yield from outer_entries(both)
        for ours, theirs, last, ffn in blocks(both):
            yield from attention_entries(ours, theirs, last)
            mlp = f"{theirs}.{last}.mlp"
            if isinstance(ffn, Switch):
                yield same(f"{ours}.ffn.router.weight", f"{mlp}.router.classifier.weight")
                yield from expert_entries(ours, f"{mlp}.experts.expert_", ffn.n_experts)
            else:
                for name, other in (("up", "wi"), ("down", "wo")):
                    yield same(f"{ours}.ffn.{name}.weight", f"{mlp}.{other}.weight")


def expert_entries(ours: str, theirs: str, n_experts: int) -> Iterator[Entry]:
    """Our stacks of matrices from one matrix for each expert."""
    for name, other in (("up", "wi"), ("down", "wo")):
        yield stacked(f"{ours}.ffn.experts.{name}", [f"{theirs}{expert}.{other}.weight" for expert in range(n_experts)])


def dense(config: Config) -> Mlp:
    """The feed-forward part of layers without experts."""
    return Mlp(hidden=config["d_ff"], activation=activation(config.get("dense_act_fn", "relu")), bias=False)


def with_experts(config: Config, side: TowerSpec, n_sparse: int) -> TowerSpec:
    """The side with experts in layers 1, 1 + s, 1 + 2 s, ..., where s is the number of layers for each with experts."""
    if n_sparse < 1:
        raise UserError("a side without experts in config.json has no counterpart here (num_sparse_*_layers must be at least 1)")
    step = side.n_layers // n_sparse
    sparse = len(range(1 if step > 1 else 0, side.n_layers, step))
    switch = Switch(
        hidden=config["d_ff"],
        n_experts=config["num_experts"],
        activation=activation(config.get("dense_act_fn", "relu")),
        gated=False,
        capacity=config.get("expert_capacity", 64),
        jitter=config.get("router_jitter_noise", 0.01),
        balance=config.get("router_aux_loss_coef", 0.001) / sparse,
        z=config.get("router_z_loss_coef", 0.001) / sparse,
    )
    if step == 1:
        return dataclasses.replace(side, ffn=switch)
    return dataclasses.replace(side, others={SPARSE: LayerSpec(ffn=switch)}, pattern=[BASE, SPARSE, *[BASE] * (step - 2)])


def experts_of(side: TowerSpec) -> Switch:
    """The feed-forward part of its layers with experts."""
    if not side.others:
        return expect(side.ffn, Switch)
    kind, *more = side.others.values()
    if more or kind.ffn is None or kind.attention is not None:
        raise Inexpressible("its layers differ in more than experts")
    switch = expect(kind.ffn, Switch)
    expect(side.ffn, Mlp, bias=False, hidden=switch.hidden, activation=switch.activation)
    return switch


def sparse_layers(side: TowerSpec) -> int:
    """`num_sparse_*_layers` of which the side's pattern follows."""
    found = [isinstance(kind.ffn, Switch) for kind in side.kinds()]
    for count in range(1, side.n_layers + 1):
        step = side.n_layers // count
        if found == [step == 1 or layer % step == 1 for layer in range(side.n_layers)]:
            return count
    raise Inexpressible("its layers with experts do not follow at equal distances from the second on")


def pooled(weight: float, n_layers: int) -> float:
    """The coefficient of which `weight` is one layer's share; without the last digits, so that reading gives the share again."""
    return float(f"{weight * n_layers:.12g}")
