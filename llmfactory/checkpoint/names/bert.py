"""BERT (Devlin et al. 2018) and those that share its tensors' names: RoBERTa in `roberta.py`, ELECTRA in `electra.py`.

The head follows from `architectures`: `ForMaskedLM`, `ForSequenceClassification`, `ForTokenClassification`,
`ForQuestionAnswering`, or `Model`, the encoder with its pooler. Dropout is taken over, since such models are there to be tuned.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

from llmfactory.checkpoint.names.family import Config, Entry, Family, Inexpressible, linear, same
from llmfactory.checkpoint.names.reading import activation, activation_name, defaults, expect, refuse, wanted
from llmfactory.core.errors import UserError
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import PostNorm
from llmfactory.model.embedding.spec import TokenSegment
from llmfactory.model.ffn.spec import Activation, Mlp
from llmfactory.model.head.spec import Classifier, HeadSpec, Mlm, Pooler, SpanQa, TokenClassifier
from llmfactory.model.norm.spec import LayerNorm
from llmfactory.model.position.spec import Learned
from llmfactory.model.spec import EncoderOnly, ModelSpec

MASKED, CLASSES, TAGS, SPAN, BASE = (
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "Model",
)
"""Ends of the names of architectures that the families have in common."""
LAYER = {
    "attention.q": "attention.self.query",
    "attention.k": "attention.self.key",
    "attention.v": "attention.self.value",
    "attention.o": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn.up": "intermediate.dense",
    "ffn.down": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
"""Our names in a block, and theirs."""


class Bert(Family):
    types: tuple[str, ...] = ("bert",)
    # Tables that are computed, copies of tied tensors, and heads that the wanted architecture does not have.
    ignored: tuple[str, ...] = (
        r"(bert\.)?embeddings\.position_ids",
        r"cls\.predictions\.decoder\.(weight|bias)",
        r"cls\.seq_relationship\.(weight|bias)",
        r"bert\.pooler\.dense\.(weight|bias)",
    )
    prefix: ClassVar[str] = "bert"
    """Start of the encoder's names, where there is a head."""
    title: ClassVar[str] = "Bert"
    """Start of the architectures' names."""
    architectures: ClassVar[tuple[str, ...]] = (MASKED, CLASSES, TAGS, SPAN, BASE)
    bare: ClassVar[type[HeadSpec]] = Pooler
    """The head of a model that is all encoder, whose names have no `prefix`."""
    fields: ClassVar[tuple[str, ...]] = ()
    """Fields of the skeleton that this family has keys for, besides those that all have."""

    def today(self, name: str) -> str:
        """Checkpoints of the first years call a norm's gain gamma and its bias beta."""
        return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name))

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False, tie_word_embeddings=True)
        refuse(config, pruned_heads={})
        offset, dropout = self.offset(config), config.get("hidden_dropout_prob", 0.1)
        return EncoderOnly(
            vocab_size=config["vocab_size"],
            dim=config["hidden_size"],
            n_layers=config["num_hidden_layers"],
            max_positions=config["max_position_embeddings"] - offset,
            init_std=config.get("initializer_range", 0.02),
            norm=LayerNorm(eps=config.get("layer_norm_eps", 1e-12)),
            position=Learned(offset=offset),
            attention=Gqa(
                n_heads=config["num_attention_heads"], bias=True, dropout=config.get("attention_probs_dropout_prob", 0.1)
            ),
            ffn=Mlp(hidden=config["intermediate_size"], activation=activation(config.get("hidden_act", "gelu"))),
            block=PostNorm(),
            dropout=dropout,
            depth_scaled_init=False,
            embedding=TokenSegment(n_types=config.get("type_vocab_size", 2)),
            embedding_norm=True,
            embedding_dim=self.embedding_dim(config),
            head=self.head(config, architecture(config, self.architectures)),
        )

    def offset(self, config: Config) -> int:
        """Rows of the position table before the first position's."""
        return 0

    def embedding_dim(self, config: Config) -> int | None:
        """`EncoderOnly.embedding_dim`."""
        return None

    def head(self, config: Config, kind: str) -> HeadSpec:
        """The head of an architecture, by the end of its name."""
        if kind == MASKED:
            return Mlm(tied=True, activation=activation(config.get("hidden_act", "gelu")))
        if kind == CLASSES:
            return Classifier(n_classes=n_classes(config), activation=Activation.tanh, dropout=head_dropout(config))
        return task_head(config, kind)

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = wanted(spec, EncoderOnly, position=Learned, block=PostNorm, embedding=TokenSegment)
        defaults(model, "init_std", "dropout", "depth_scaled_init", "embedding_norm", *self.fields)
        if not model.embedding_norm:
            raise Inexpressible("its embeddings are not normalized")
        norm, position = expect(model.norm, LayerNorm), expect(model.position, Learned)
        defaults(norm, "eps")
        attention, ffn = expect(model.attention, Gqa, bias=True), expect(model.ffn, Mlp, bias=True)
        defaults(attention, "bias", "dropout")
        return {
            "model_type": self.types[0],
            "vocab_size": model.vocab_size,
            "hidden_size": model.dim,
            "num_hidden_layers": model.n_layers,
            "num_attention_heads": attention.n_heads,
            "intermediate_size": ffn.hidden,
            "hidden_act": activation_name(ffn.activation),
            "hidden_dropout_prob": model.dropout,
            "attention_probs_dropout_prob": attention.dropout,
            "max_position_embeddings": model.max_positions + position.offset,
            "type_vocab_size": expect(model.embedding, TokenSegment).n_types,
            "initializer_range": model.init_std,
            "layer_norm_eps": norm.eps,
            "tie_word_embeddings": True,
            **self.own_keys(model, position.offset),
            **self.head_keys(model, ffn.activation),
        }

    def own_keys(self, model: EncoderOnly, offset: int) -> dict[str, Any]:
        """Keys of this family besides those that all have."""
        if offset:
            raise Inexpressible("its first position has not the first row of the table")
        return {"pad_token_id": 0}

    def head_keys(self, model: EncoderOnly, activation: Activation) -> dict[str, Any]:
        """`architectures` and what belongs to the head; `activation` is the feed-forward's."""
        head = model.head
        if isinstance(head, Mlm):
            defaults(expect(head, Mlm, tied=True, activation=activation))
            return {"architectures": [self.title + MASKED]}
        if isinstance(head, Classifier):
            expect(head, Classifier, activation=Activation.tanh)
            defaults(head, "activation", "dropout")
            return classes_keys(self.title, head.n_classes, head.dropout)
        return task_keys(self.title, head)

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = wanted(spec, EncoderOnly)
        start = "" if isinstance(model.head, self.bare) else f"{self.prefix}."
        yield same("embedding.weight", f"{start}embeddings.word_embeddings.weight")
        yield same("embedding.types", f"{start}embeddings.token_type_embeddings.weight")
        yield same("position.weight", f"{start}embeddings.position_embeddings.weight")
        yield from linear("embedding_norm", f"{start}embeddings.LayerNorm", bias=True)
        yield from self.block_entries(model, start)
        yield from self.head_entries(model.head)

    def block_entries(self, model: EncoderOnly, start: str) -> Iterator[Entry]:
        """Tensors between embeddings and head."""
        for layer in range(model.n_layers):
            for ours, theirs in LAYER.items():
                yield from linear(f"blocks.{layer}.{ours}", f"{start}encoder.layer.{layer}.{theirs}", bias=True)

    def head_entries(self, head: HeadSpec) -> Iterator[Entry]:
        if isinstance(head, Mlm):
            yield from linear("head.transform.dense", "cls.predictions.transform.dense", bias=True)
            yield from linear("head.transform.norm", "cls.predictions.transform.LayerNorm", bias=True)
            yield same("head.bias", "cls.predictions.bias")
        elif isinstance(head, Classifier):
            yield from linear("head.dense", f"{self.prefix}.pooler.dense", bias=True)
            yield from linear("head", "classifier", bias=True)
        else:
            yield from task_entries(head)


def architecture(config: Config, known: tuple[str, ...]) -> str:
    """The end of the name that `architectures` says; the first of `known` where it says nothing."""
    names = config.get("architectures") or [known[0]]
    found = [kind for kind in known if re.fullmatch(rf"[A-Z][A-Za-z]*?{kind}|{kind}", str(names[0]))]
    if not found:
        raise UserError(f"architectures={names!r} in config.json has no counterpart here: there are ...{', ...'.join(known)}")
    return found[0]


def n_classes(config: Config) -> int:
    """Number of labels; two where a config does not name them."""
    labels = config.get("id2label")
    return int(config.get("num_labels") or 2) if labels is None else len(labels)


def head_dropout(config: Config) -> float:
    """`classifier_dropout`, or the encoder's."""
    own = config.get("classifier_dropout")
    return float(config.get("hidden_dropout_prob", 0.1) if own is None else own)


def task_head(config: Config, kind: str) -> HeadSpec:
    """The heads that all families have alike."""
    if kind == TAGS:
        return TokenClassifier(n_classes=n_classes(config), dropout=head_dropout(config))
    if kind == SPAN:
        if n_classes(config) != 2:
            raise UserError(f"{n_classes(config)} labels for question answering in config.json: a span has two ends")
        return SpanQa()
    return Pooler()


def task_keys(title: str, head: HeadSpec) -> dict[str, Any]:
    """Back."""
    if isinstance(head, TokenClassifier):
        return classes_keys(title, head.n_classes, head.dropout, TAGS)
    if isinstance(head, SpanQa):
        return {"architectures": [title + SPAN], "id2label": labels(2)}
    expect(head, Pooler)
    return {"architectures": [title + BASE]}


def classes_keys(title: str, n_classes: int, dropout: float, kind: str = CLASSES) -> dict[str, Any]:
    """Of a classifier."""
    return {"architectures": [title + kind], "id2label": labels(n_classes), "classifier_dropout": dropout}


def labels(count: int) -> dict[str, str]:
    """Names for classes that have none."""
    return {str(number): f"LABEL_{number}" for number in range(count)}


def task_entries(head: HeadSpec) -> Iterator[Entry]:
    """Tensors of the heads that all families have alike."""
    if isinstance(head, TokenClassifier):
        yield from linear("head", "classifier", bias=True)
    elif isinstance(head, SpanQa):
        yield from linear("head", "qa_outputs", bias=True)
    elif isinstance(head, Pooler):
        yield from linear("head", "pooler.dense", bias=True)
