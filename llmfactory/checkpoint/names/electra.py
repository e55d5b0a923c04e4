"""ELECTRA (Clark et al. 2020): a generator, BERT with narrow embeddings, and a discriminator that says of each token whether it was
replaced (`ForPreTraining`). A base model has no pooler: its vector of a document is that of the first token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from llmfactory.checkpoint.names.bert import (
    BASE,
    CLASSES,
    MASKED,
    SPAN,
    TAGS,
    Bert,
    classes_keys,
    head_dropout,
    n_classes,
    task_entries,
    task_head,
    task_keys,
)
from llmfactory.checkpoint.names.family import Config, Entry, linear, same
from llmfactory.checkpoint.names.reading import activation, defaults, expect
from llmfactory.model.ffn.spec import Activation
from llmfactory.model.head.spec import Classifier, Discriminator, HeadSpec, Mlm, Pooling, Sentence
from llmfactory.model.spec import EncoderOnly

REPLACED = "ForPreTraining"


class Electra(Bert):
    types = ("electra",)
    ignored = (r"(electra\.)?embeddings\.position_ids", r"generator_lm_head\.weight")
    prefix: ClassVar[str] = "electra"
    title: ClassVar[str] = "Electra"
    architectures: ClassVar[tuple[str, ...]] = (REPLACED, MASKED, CLASSES, TAGS, SPAN, BASE)
    bare: ClassVar[type[HeadSpec]] = Sentence
    fields: ClassVar[tuple[str, ...]] = ("embedding_dim",)

    def embedding_dim(self, config: Config) -> int | None:
        width = config.get("embedding_size")
        return None if width in (None, config["hidden_size"]) else width

    def head(self, config: Config, kind: str) -> HeadSpec:
        """The exact GELU of the generator's and the classifier's heads is a constant of the reference's code."""
        if kind == REPLACED:
            return Discriminator(activation=activation(config.get("hidden_act", "gelu")))
        if kind == MASKED:
            return Mlm(tied=True, activation=Activation.gelu, width=self.embedding_dim(config))
        if kind == CLASSES:
            dropout = head_dropout(config)
            return Classifier(n_classes=n_classes(config), activation=Activation.gelu, input_dropout=dropout, dropout=dropout)
        if kind == BASE:
            return Sentence(pooling=Pooling.first, normalize=False)
        return task_head(config, kind)

    def own_keys(self, model: EncoderOnly, offset: int) -> dict[str, Any]:
        return {**super().own_keys(model, offset), "embedding_size": model.embedding_dim or model.dim}

    def head_keys(self, model: EncoderOnly, activation: Activation) -> dict[str, Any]:
        head = model.head
        if isinstance(head, Discriminator):
            expect(head, Discriminator, activation=activation)
            return {"architectures": [self.title + REPLACED]}
        if isinstance(head, Mlm):
            defaults(expect(head, Mlm, tied=True, activation=Activation.gelu, width=model.embedding_dim), "width")
            return {"architectures": [self.title + MASKED]}
        if isinstance(head, Classifier):
            expect(head, Classifier, activation=Activation.gelu, input_dropout=head.dropout)
            defaults(head, "activation", "dropout", "input_dropout")
            return classes_keys(self.title, head.n_classes, head.dropout)
        if isinstance(head, Sentence):
            expect(head, Sentence, pooling=Pooling.first, normalize=False)
            return {"architectures": [self.title + BASE]}
        return task_keys(self.title, head)

    def block_entries(self, model: EncoderOnly, start: str) -> Iterator[Entry]:
        if model.embedding_dim is not None:
            yield from linear("project", f"{start}embeddings_project", bias=True)
        yield from super().block_entries(model, start)

    def head_entries(self, head: HeadSpec) -> Iterator[Entry]:
        if isinstance(head, Discriminator):
            yield from linear("head.dense", "discriminator_predictions.dense", bias=True)
            yield from linear("head", "discriminator_predictions.dense_prediction", bias=True)
        elif isinstance(head, Mlm):
            yield from linear("head.transform.dense", "generator_predictions.dense", bias=True)
            yield from linear("head.transform.norm", "generator_predictions.LayerNorm", bias=True)
            yield same("head.bias", "generator_lm_head.bias")
        elif isinstance(head, Classifier):
            yield from linear("head.dense", "classifier.dense", bias=True)
            yield from linear("head", "classifier.out_proj", bias=True)
        else:
            yield from task_entries(head)
