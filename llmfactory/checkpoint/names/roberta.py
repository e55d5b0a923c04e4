"""RoBERTa (Liu et al. 2019): BERT whose positions start behind the padding's row of their table, and with heads of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from llmfactory.checkpoint.names.bert import (
    CLASSES,
    MASKED,
    Bert,
    classes_keys,
    head_dropout,
    n_classes,
    task_entries,
    task_head,
    task_keys,
)
from llmfactory.checkpoint.names.family import Config, Entry, Inexpressible, linear, same
from llmfactory.checkpoint.names.reading import defaults, expect
from llmfactory.model.ffn.spec import Activation
from llmfactory.model.head.spec import Classifier, HeadSpec, Mlm
from llmfactory.model.spec import EncoderOnly


class Roberta(Bert):
    types = ("roberta", "xlm-roberta")
    ignored = (
        r"(roberta\.)?embeddings\.position_ids",
        r"lm_head\.decoder\.(weight|bias)",
        r"roberta\.pooler\.dense\.(weight|bias)",
    )
    prefix: ClassVar[str] = "roberta"
    title: ClassVar[str] = "Roberta"

    def offset(self, config: Config) -> int:
        padding = config.get("pad_token_id")
        return 1 + (1 if padding is None else int(padding))

    def head(self, config: Config, kind: str) -> HeadSpec:
        """The exact GELU of the masked head and the tanh of the classifier are constants of the reference's code."""
        if kind == MASKED:
            return Mlm(tied=True, activation=Activation.gelu)
        if kind == CLASSES:
            dropout = head_dropout(config)
            return Classifier(n_classes=n_classes(config), activation=Activation.tanh, input_dropout=dropout, dropout=dropout)
        return task_head(config, kind)

    def own_keys(self, model: EncoderOnly, offset: int) -> dict[str, Any]:
        if offset < 1:
            raise Inexpressible("its first position has the first row of the table")
        return {"pad_token_id": offset - 1}

    def head_keys(self, model: EncoderOnly, activation: Activation) -> dict[str, Any]:
        head = model.head
        if isinstance(head, Mlm):
            defaults(expect(head, Mlm, tied=True, activation=Activation.gelu))
            return {"architectures": [self.title + MASKED]}
        if isinstance(head, Classifier):
            expect(head, Classifier, activation=Activation.tanh, input_dropout=head.dropout)
            defaults(head, "activation", "dropout", "input_dropout")
            return classes_keys(self.title, head.n_classes, head.dropout)
        return task_keys(self.title, head)

    def head_entries(self, head: HeadSpec) -> Iterator[Entry]:
        if isinstance(head, Mlm):
            yield from linear("head.transform.dense", "lm_head.dense", bias=True)
            yield from linear("head.transform.norm", "lm_head.layer_norm", bias=True)
            yield same("head.bias", "lm_head.bias")
        elif isinstance(head, Classifier):
            yield from linear("head.dense", "classifier.dense", bias=True)
            yield from linear("head", "classifier.out_proj", bias=True)
        else:
            yield from task_entries(head)
