"""ALBERT (Lan et al. 2020): BERT with narrow embeddings and one block for all layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

from llmfactory.checkpoint.names.bert import MASKED, Bert, task_entries
from llmfactory.checkpoint.names.family import Config, Entry, Inexpressible, linear, same
from llmfactory.checkpoint.names.reading import activation, defaults, expect, refuse, wanted
from llmfactory.core.errors import UserError
from llmfactory.model.ffn.spec import Activation
from llmfactory.model.head.spec import Classifier, HeadSpec, Mlm, Pooler
from llmfactory.model.spec import EncoderOnly, ModelSpec

LAYER = {
    "attention.q": "attention.query",
    "attention.k": "attention.key",
    "attention.v": "attention.value",
    "attention.o": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "ffn.up": "ffn",
    "ffn.down": "ffn_output",
    "ffn_norm": "full_layer_layer_norm",
}
"""Our names in a block, and theirs."""


class Albert(Bert):
    """The reference drops nothing after the feed-forward part, ours does; published models have no dropout."""

    types = ("albert",)
    ignored = (
        r"(albert\.)?embeddings\.position_ids",
        r"predictions\.decoder\.(weight|bias)",
        r"sop_classifier\.classifier\.(weight|bias)",
        r"albert\.pooler\.(weight|bias)",
    )
    prefix: ClassVar[str] = "albert"
    title: ClassVar[str] = "Albert"
    fields: ClassVar[tuple[str, ...]] = ("embedding_dim", "unique_layers")

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, inner_group_num=1, down_scale_factor=1, gap_size=0, net_structure_type=0)
        layers, groups = config["num_hidden_layers"], config.get("num_hidden_groups", 1)
        if layers % groups:
            raise UserError(f"num_hidden_groups={groups} in config.json does not divide num_hidden_layers={layers}")
        usual = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "hidden_act": "gelu_new"}
        usual["classifier_dropout"] = config.get("classifier_dropout_prob", 0.1)
        return replace(wanted(super().spec({**usual, **config}), EncoderOnly), unique_layers=groups)

    def embedding_dim(self, config: Config) -> int | None:
        return int(config.get("embedding_size", 128))

    def head(self, config: Config, kind: str) -> HeadSpec:
        if kind == MASKED:
            return Mlm(tied=True, activation=activation(config["hidden_act"]), width=self.embedding_dim(config))
        return super().head(config, kind)

    def own_keys(self, model: EncoderOnly, offset: int) -> dict[str, Any]:
        if model.embedding_dim is None:
            raise Inexpressible("its embeddings have the model's width, without a map to it")
        groups = {"num_hidden_groups": model.unique_layers or model.n_layers, "inner_group_num": 1}
        return {**super().own_keys(model, offset), "embedding_size": model.embedding_dim, **groups}

    def head_keys(self, model: EncoderOnly, activation: Activation) -> dict[str, Any]:
        if isinstance(model.head, Mlm):
            defaults(expect(model.head, Mlm, tied=True, activation=activation, width=model.embedding_dim), "width")
            return {"architectures": [self.title + MASKED]}
        keys = super().head_keys(model, activation)
        return {"classifier_dropout_prob" if key == "classifier_dropout" else key: value for key, value in keys.items()}

    def block_entries(self, model: EncoderOnly, start: str) -> Iterator[Entry]:
        yield from linear("project", f"{start}encoder.embedding_hidden_mapping_in", bias=True)
        for group in range(model.n_layers // model.repeats()):
            for ours, theirs in LAYER.items():
                name = f"{start}encoder.albert_layer_groups.{group}.albert_layers.0.{theirs}"
                yield from linear(f"blocks.{group}.{ours}", name, bias=True)

    def head_entries(self, head: HeadSpec) -> Iterator[Entry]:
        if isinstance(head, Mlm):
            yield from linear("head.transform.dense", "predictions.dense", bias=True)
            yield from linear("head.transform.norm", "predictions.LayerNorm", bias=True)
            yield same("head.bias", "predictions.bias")
        elif isinstance(head, Classifier):
            yield from linear("head.dense", "albert.pooler", bias=True)
            yield from linear("head", "classifier", bias=True)
        elif isinstance(head, Pooler):
            yield from linear("head", "pooler", bias=True)
        else:
            yield from task_entries(head)
