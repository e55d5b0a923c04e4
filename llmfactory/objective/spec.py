"""Catalogue of training objectives (config group stage/objective)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import above, at_least, between
from llmfactory.core.special import (
    DOCUMENT_MASK,
    END_OF_SPAN,
    EXTREME,
    MASK,
    REGULAR,
    SENTENCE_MASK,
    SEQUENTIAL,
    START_OF_SPAN,
    Special,
    sentinels,
)
from llmfactory.model.ffn.spec import Activation
from llmfactory.model.head.spec import HeadSpec, Mlm
from llmfactory.objective.base_spec import ObjectiveSpec as ObjectiveSpec
from llmfactory.objective.policy_spec import ActorCritic as ActorCritic
from llmfactory.objective.policy_spec import Policy as Policy
from llmfactory.objective.policy_spec import PolicySpec as PolicySpec
from llmfactory.objective.preference_spec import Compares as Compares
from llmfactory.objective.preference_spec import Cpo as Cpo
from llmfactory.objective.preference_spec import Dpo as Dpo
from llmfactory.objective.preference_spec import Ipo as Ipo
from llmfactory.objective.preference_spec import Kto as Kto
from llmfactory.objective.preference_spec import Orpo as Orpo
from llmfactory.objective.preference_spec import PreferenceSpec as PreferenceSpec
from llmfactory.objective.preference_spec import Reference as Reference
from llmfactory.objective.preference_spec import Rrhf as Rrhf
from llmfactory.objective.preference_spec import Simpo as Simpo
from llmfactory.objective.preference_spec import Slic as Slic
from llmfactory.objective.reward_spec import BradleyTerry as BradleyTerry
from llmfactory.objective.reward_spec import Process as Process
from llmfactory.objective.reward_spec import Ranking as Ranking
from llmfactory.objective.reward_spec import Regression as Regression
from llmfactory.objective.reward_spec import RewardSpec as RewardSpec
from llmfactory.objective.task_spec import Tilted as Tilted

if TYPE_CHECKING:
    from llmfactory.model.spec import EncoderOnly, ModelSpec
    from llmfactory.objective.objective import Objective


@dataclass(kw_only=True, slots=True)
class Causal(ObjectiveSpec):
    """Predict each next token: the mean over targets of -log p(label) (Bengio et al. 2003)."""

    graphs: ClassVar[tuple[str, ...]] = ("decoder", "recurrent", "counts", "multimodal")
    label_smoothing: float = 0.0
    """Weight of the uniform distribution in the target (Szegedy et al. 2016, section 7)."""
    z_loss: float = 0.0
    """Weight of log^2 Z, Z the normalizer of a token's softmax: keeps logits from drifting (PaLM, section 5: 1e-4)."""

    def problems(self) -> Iterator[Problem]:
        yield from between(self, 0.0, 0.99, "label_smoothing")
        yield from at_least(self, 0.0, "z_loss")

    def build(self) -> Objective:
        from llmfactory.objective.causal import CausalObjective

        return CausalObjective(self)


@dataclass(kw_only=True, slots=True)
class Prefix(ObjectiveSpec):
    """Read the beginning of a text in both directions, predict the rest token by token (Raffel et al. 2020, section 3.2.2)."""

    graphs: ClassVar[tuple[str, ...]] = ("decoder",)

    def build(self) -> Objective:
        from llmfactory.objective.prefix import PrefixObjective

        return PrefixObjective(self)


@dataclass(kw_only=True, slots=True)
class Masked(ObjectiveSpec):
    """Tell hidden tokens from those around them (BERT, Devlin et al. 2019, section 3.1)."""

    graphs: ClassVar[tuple[str, ...]] = ("encoder",)
    rate: float = 0.15
    """Share of a row's tokens that are to be told."""
    mask_share: float = 0.8
    """Share of these that are shown as the mask."""
    random_share: float = 0.1
    """Share of these that are shown as a random token; the others are shown as they are."""
    whole_words: bool = False
    """Hide all tokens of a word together."""
    static: bool = False
    """Hide the same tokens of a row in every epoch (BERT) instead of others each time (RoBERTa)."""

    def problems(self) -> Iterator[Problem]:
        yield from between(self, 0.01, 0.9, "rate")
        yield from between(self, 0.0, 1.0, "mask_share", "random_share")
        if 0 <= self.mask_share <= 1 and 0 <= self.random_share <= 1 < self.mask_share + self.random_share:
            reason = f"mask_share={self.mask_share} and this are more than all"
            yield Problem("random_share", self.random_share, reason, f"random_share={round(1 - self.mask_share, 6)}")

    def specials(self) -> tuple[Special, ...]:
        return (MASK,)

    def build(self) -> Objective:
        from llmfactory.objective.masked import MaskedObjective

        return MaskedObjective(self)


@dataclass(kw_only=True, slots=True)
class SpanCorruption(ObjectiveSpec):
    """Write the spans that are missing in a text (T5, Raffel et al. 2020, section 3.1.4)."""

    graphs: ClassVar[tuple[str, ...]] = ("encoder_decoder",)
    rate: float = 0.15
    """Share of a document's tokens that are missing."""
    mean_span: float = 3.0
    """Mean length of a missing span, in tokens."""
    sentinels: int = 100
    """Tokens that stand for missing spans: no document has more spans."""

    def problems(self) -> Iterator[Problem]:
        yield from between(self, 0.01, 0.9, "rate")
        yield from at_least(self, 1, "mean_span", "sentinels")

    def specials(self) -> tuple[Special, ...]:
        return sentinels(self.sentinels)

    def build(self) -> Objective:
        from llmfactory.objective.span_corruption import SpanCorruptionObjective

        return SpanCorruptionObjective(self)


@dataclass(kw_only=True, slots=True)
class Ul2(ObjectiveSpec):
    """Write what is missing in a text, under seven ways of taking it out (UL2, Tay et al. 2022, table 1)."""

    graphs: ClassVar[tuple[str, ...]] = ("encoder_decoder",)
    sentinels: int = 100
    """Tokens that stand for missing spans: no document has more spans."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "sentinels")

    def specials(self) -> tuple[Special, ...]:
        return (*sentinels(self.sentinels), REGULAR, SEQUENTIAL, EXTREME)

    def build(self) -> Objective:
        from llmfactory.objective.ul2 import Ul2Objective

        return Ul2Objective(self)


@dataclass(kw_only=True, slots=True)
class Denoising(ObjectiveSpec):
    """Write a damaged text as it was (BART, Lewis et al. 2020, section 2.2)."""

    graphs: ClassVar[tuple[str, ...]] = ("encoder_decoder",)
    rate: float = 0.3
    """Share of a document's tokens that are missing."""
    mean_span: float = 3.0
    """Mean of the Poisson distribution of the lengths of missing spans, in tokens; each span is one mask."""
    permute_sentences: bool = True
    """Put the sentences of a document into random order."""
    rotate: float = 0.0
    """Share of the documents that begin at a random token and go on at their beginning."""

    def problems(self) -> Iterator[Problem]:
        yield from between(self, 0.0, 0.9, "rate")
        yield from above(self, 0.0, "mean_span", repair=3.0)
        yield from between(self, 0.0, 1.0, "rotate")

    def specials(self) -> tuple[Special, ...]:
        return (MASK,)

    def build(self) -> Objective:
        from llmfactory.objective.denoising import DenoisingObjective

        return DenoisingObjective(self)


@dataclass(kw_only=True, slots=True)
class Permutation(ObjectiveSpec):
    """Predict the last tokens of a random order (XLNet, Yang et al. 2019, equation 5)."""

    graphs: ClassVar[tuple[str, ...]] = ("two_stream",)
    one_in: int = 6
    """One of so many tokens of a document is predicted, K."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "one_in")

    def build(self) -> Objective:
        from llmfactory.objective.permutation import PermutationObjective

        return PermutationObjective(self)


@dataclass(kw_only=True, slots=True)
class BlankInfilling(ObjectiveSpec):
    """Write the missing spans of a text behind it, in random order (GLM, Du et al. 2022)."""

    graphs: ClassVar[tuple[str, ...]] = ("decoder",)
    rate: float = 0.15
    """Share of a document's tokens that are missing, but where its rest is."""
    mean_span: float = 3.0
    """Mean of the Poisson distribution of the lengths of short spans, in tokens."""
    sentence_share: float = 0.0
    """Share of the documents whose blanks are whole sentences."""
    document_share: float = 0.0
    """Share of the documents with one blank: their second half or more."""

    def problems(self) -> Iterator[Problem]:
        yield from between(self, 0.01, 0.9, "rate")
        yield from above(self, 0.0, "mean_span", repair=3.0)
        yield from between(self, 0.0, 1.0, "sentence_share", "document_share")
        if 0 <= self.sentence_share <= 1 and 0 <= self.document_share <= 1 < self.sentence_share + self.document_share:
            reason = f"sentence_share={self.sentence_share} and this are more than all"
            yield Problem("document_share", self.document_share, reason, f"document_share={round(1 - self.sentence_share, 6)}")

    def specials(self) -> tuple[Special, ...]:
        return (MASK, SENTENCE_MASK, DOCUMENT_MASK, START_OF_SPAN, END_OF_SPAN)

    def build(self) -> Objective:
        from llmfactory.objective.blank_infilling import BlankInfillingObjective

        return BlankInfillingObjective(self)


@dataclass(kw_only=True, slots=True)
class ReplacedToken(ObjectiveSpec):
    """Tell which tokens a small masked language model, trained beside, has replaced (ELECTRA, Clark et al. 2020)."""

    graphs: ClassVar[tuple[str, ...]] = ("encoder",)
    answers: ClassVar[str] = "replaced"
    rate: float = 0.15
    """Share of a row's tokens that the generator is asked for, and may replace."""
    generator_scale: float = 0.25
    """Size of the generator: its heads and widths as a share of the model's. Depth and vocabulary vectors are the model's own."""
    weight: float = 50.0
    """Factor of the model's loss beside the generator's."""

    def problems(self) -> Iterator[Problem]:
        yield from between(self, 0.01, 0.9, "rate")
        yield from above(self, 0.0, "generator_scale", repair=0.25)
        yield from above(self, 0.0, "weight", repair=50.0)

    def specials(self) -> tuple[Special, ...]:
        return (MASK,)

    def generator(self, model: EncoderOnly) -> EncoderOnly:
        """The small model. Raises ConfigError where there is none of that size."""
        heads = max(1, round(model.attention.n_heads * self.generator_scale))
        dim = heads * model.attention.head_width(model.dim)
        hidden = max(1, round(model.ffn.hidden * dim / model.dim))
        width = model.embedding_dim or model.dim
        return replace(
            model,
            dim=dim,
            embedding_dim=width,
            attention=replace(model.attention, n_heads=heads),
            ffn=replace(model.ffn, hidden=hidden),
            head=Mlm(tied=True, activation=Activation.gelu, width=width),
        )

    def build(self) -> Objective:
        from llmfactory.objective.replaced_token import ReplacedTokenObjective

        return ReplacedTokenObjective(self)


@dataclass(kw_only=True, slots=True)
class WordsSpec(ObjectiveSpec):
    """Base of the objectives that learn vectors of words from the words around them, by negative sampling."""

    graphs: ClassVar[tuple[str, ...]] = ("words",)
    window: int = 5
    """Words on either side that may count as near; for each word a distance from 1 to this is drawn."""
    negatives: int = 5
    """Random words that each near one is told from, k."""
    subsample: float | None = 1e-3
    """Threshold t: a word of relative frequency f is left out with probability 1 - sqrt(t / f); None: none is."""
    noise_power: float = 0.75
    """The random words are drawn in proportion to their frequency to this power."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "window", "negatives")
        yield from above(self, 0.0, "subsample", repair=1e-3)
        yield from between(self, 0.0, 1.0, "noise_power")


@dataclass(kw_only=True, slots=True)
class SkipGram(WordsSpec):
    """Tell the words near a word from random ones (Mikolov et al. 2013b, equation 4)."""

    def build(self) -> Objective:
        from llmfactory.objective.skip_gram import SkipGramObjective

        return SkipGramObjective(self)


@dataclass(kw_only=True, slots=True)
class Cbow(WordsSpec):
    """Tell a word from random ones by the mean vector of the words near it (Mikolov et al. 2013a, section 3.1)."""

    def build(self) -> Objective:
        from llmfactory.objective.cbow import CbowObjective

        return CbowObjective(self)


@dataclass(kw_only=True, slots=True)
class Classify(ObjectiveSpec):
    """One of a few classes for each text: the mean of -log p(class) (Devlin et al. 2018, section 4.1)."""

    labelled: ClassVar[bool] = True
    graphs: ClassVar[tuple[str, ...]] = ("encoder", "decoder", "recurrent")
    answers: ClassVar[str] = "label"
    label_smoothing: float = 0.0
    """Weight of the uniform distribution in the target."""

    def problems(self) -> Iterator[Problem]:
        yield from between(self, 0.0, 0.99, "label_smoothing")

    def build(self) -> Objective:
        from llmfactory.objective.classify import ClassifyObjective

        return ClassifyObjective(self.label_smoothing)


@dataclass(kw_only=True, slots=True)
class Tag(ObjectiveSpec):
    """One of a few classes for each word, as in named entity recognition: the mean of -log p(tag)."""

    labelled: ClassVar[bool] = True
    graphs: ClassVar[tuple[str, ...]] = ("encoder", "decoder", "recurrent")
    answers: ClassVar[str] = "labels"

    def build(self) -> Objective:
        from llmfactory.objective.tag import TagObjective

        return TagObjective()


@dataclass(kw_only=True, slots=True)
class Span(ObjectiveSpec):
    """First and last token of the answer to a question: the mean of -log p(token) over both (Devlin et al. 2018, section 4.2)."""

    labelled: ClassVar[bool] = True
    graphs: ClassVar[tuple[str, ...]] = ("encoder",)
    answers: ClassVar[str] = "span"

    def build(self) -> Objective:
        from llmfactory.objective.span import SpanObjective

        return SpanObjective()


@dataclass(kw_only=True, slots=True)
class Seq2seq(ObjectiveSpec):
    """Write one text after reading another: the mean over target tokens of -log p(label | source, earlier labels)."""

    labelled: ClassVar[bool] = True
    graphs: ClassVar[tuple[str, ...]] = ("encoder_decoder",)
    label_smoothing: float = 0.0
    """Weight of the uniform distribution in the target (Vaswani et al. 2017: 0.1)."""

    def problems(self) -> Iterator[Problem]:
        yield from between(self, 0.0, 0.99, "label_smoothing")

    def build(self) -> Objective:
        from llmfactory.objective.seq2seq import Seq2seqObjective

        return Seq2seqObjective(self.label_smoothing)


PRETRAINING: tuple[type[ObjectiveSpec], ...] = (Causal, Masked, SpanCorruption, Permutation, ReplacedToken, SkipGram)
"""What models are pretrained on, the usual one of a kind first."""


LABELLED: tuple[type[ObjectiveSpec], ...] = (Classify, Tag, Span, Seq2seq)
"""Of tasks on labelled examples."""


def natural(graph: str, answers: str) -> type[ObjectiveSpec] | None:
    """What a kind of model, with a head that says this, is usually pretrained on; None: it is no model to be pretrained."""
    return next((cls for cls in PRETRAINING if graph in cls.graphs and cls.answers == answers), None)


def answers_of(model: ModelSpec) -> str:
    """What a model's head says (`HeadSpec.answers`)."""
    heads = [value for field in fields(model) if isinstance(value := getattr(model, field.name), HeadSpec)]
    return heads[0].answers if heads else ObjectiveSpec.answers
