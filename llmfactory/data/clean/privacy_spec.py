"""Catalogue of the steps that keep out what must not be learned: personal data, toxic words, texts of evaluations; and of those
that ask a trained model what a text is worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import above, at_least, between
from llmfactory.data.clean.base_spec import CleanSpec

if TYPE_CHECKING:
    from llmfactory.data.clean.comparison import Comparison
    from llmfactory.data.clean.models import Models
    from llmfactory.data.clean.step import Step


class Personal(Enum):
    """Kinds of personal data. Of two over one place the one further up counts."""

    credential = "keys, tokens and passwords: of known services by their form, others where they are given to a name"
    login = "user and password in a URL"
    email = "e-mail addresses"
    iban = "international bank account numbers (mod 97)"
    resident = "Chinese resident numbers (region, date, check digit), old ones of 15 digits too"
    card = "payment cards (issuer, Luhn)"
    ip = "IPv4 and IPv6 addresses"
    mac = "addresses of network cards"
    ssn = "US social security numbers (ranges that are given out)"
    phone = "telephone numbers: international, North America, Europe, China"


class Instead(Enum):
    """What comes in the place of personal data."""

    placeholder = "the name of its kind: <EMAIL>"
    fake = "another of its kind that nobody has, the same for the same one"
    drop = "nothing: the document is dropped"


@dataclass(kw_only=True, slots=True)
class Redact(CleanSpec):
    """Takes personal data out, by their form and their check digits. Numbers in full-width digits need `unicode` before it."""

    kinds: list[Personal] = field(default_factory=lambda: [kind for kind in Personal if kind is not Personal.mac])
    """What is taken out."""
    style: Instead = Instead.placeholder
    """What comes instead."""
    fake_key: str | None = None
    """With style=fake: the secret that fakes are drawn with. Who knows it can try numbers until one gives a fake."""
    private_ips: bool = False
    """Also IP addresses of local networks (10.0.0.0/8, fe80::/10), which tell nothing of a person."""

    def problems(self) -> Iterator[Problem]:
        if not self.kinds:
            yield Problem("kinds", [], "nothing is to be taken out", "kinds=[email,phone]")
        if self.style is Instead.fake and not self.fake_key:
            yield Problem(
                "fake_key", self.fake_key, "fakes are drawn with a secret of yours, so that nobody can go back", "fake_key=secret"
            )
        if self.style is not Instead.fake and self.fake_key is not None:
            yield Problem("fake_key", self.fake_key, f"style={self.style.name} draws no fakes", "fake_key=null")
        if self.private_ips and Personal.ip not in self.kinds:
            yield Problem("private_ips", True, "IP addresses are not among the kinds", "private_ips=false")

    def build(self, models: Models) -> Step:
        from llmfactory.data.clean.redact import RedactPersonal

        return RedactPersonal(self)


class Measure(Enum):
    """How toxic a text is."""

    share = "weights of the words found, a phrase counting as many as it has, among all words"
    count = "sum of the weights of the words found"


class Against(Enum):
    """What is done about toxic words."""

    document = "a document that reaches the threshold is dropped"
    line = "lines that reach the threshold are taken out"
    mask = "in a document that reaches the threshold, a * comes for each character of such a word"


@dataclass(kw_only=True, slots=True)
class Toxicity(CleanSpec):
    """Acts on toxic words of lists of your own; needs the extra data. Case does not count."""

    files: list[str]
    """Lists, a word or phrase a line, with a tab and a weight if it is not 1; `#` begins a comment. Words with a letter of an alphabet at
    an end must stand by themselves there; Chinese ones and kana stand anywhere."""
    measure: Measure = Measure.share
    """What the threshold is about."""
    threshold: float = 0.01
    """From so much on something is done."""
    action: Against = Against.document
    """What is done."""
    leetspeak: bool = False
    """Also find words spelled with 0 1 3 4 5 7 @ $ ! | for the letters that they look like."""

    def problems(self) -> Iterator[Problem]:
        if not self.files:
            yield Problem("files", self.files, "no list of words is named", "files=[words.txt]")
        yield from above(self, 0.0, "threshold", repair=0.01)
        if self.measure is Measure.share and self.threshold > 1.0:
            yield Problem("threshold", self.threshold, "a share is at most 1", "measure=count")

    def build(self, models: Models) -> Step:
        from llmfactory.data.clean.toxicity import ToxicWords

        return ToxicWords(self)


class Unit(Enum):
    """What sequences consist of."""

    words = "words; a Chinese character or kana is one"
    characters = "letters and digits, whatever stands between them"


class Contaminated(Enum):
    """What is done about a text of an evaluation set."""

    cut = "it is cut out with what stands around it, as for GPT-3"
    drop = "the document is dropped"


@dataclass(kw_only=True, slots=True)
class Decontaminate(CleanSpec):
    """Takes texts of evaluation sets out of the corpus (Brown et al. 2020, appendix C). Case and marks do not count."""

    files: list[str]
    """Evaluation sets: .jsonl, .json, .csv, .tsv, or .txt with an item a line; each also .gz, .zst, .xz, .bz2. Paths, folders or globs."""
    fields: list[str] = field(default_factory=list)
    """Fields of the items whose texts are looked for, at any depth; empty: all texts."""
    unit: Unit = Unit.words
    """What sequences consist of."""
    n: int = 13
    """Units that a sequence in both has."""
    shortest: int = 8
    """Items with fewer than `n` units are looked for as a whole, down to this number of them; shorter ones are everyone's words."""
    frequent: int | None = None
    """A sequence that more documents of the corpus have is a phrase, and does not count (Brown et al.: 10); None: all count."""
    action: Contaminated = Contaminated.cut
    """What is done."""
    around: int = 200
    """Characters cut on each side of a found place, and the fewest that a piece between two has."""
    max_pieces: int = 10
    """A document that cutting leaves in more pieces is dropped."""

    def problems(self) -> Iterator[Problem]:
        if not self.files:
            yield Problem("files", self.files, "no evaluation set is named", "files=[test.jsonl]")
        yield from at_least(self, 1, "n", "shortest", "frequent", "max_pieces")
        yield from at_least(self, 0, "around")
        if self.shortest > self.n:
            yield Problem(
                "shortest", self.shortest, f"an item of n={self.n} units is never shorter than that", f"shortest={max(1, self.n)}"
            )
        if self.action is Contaminated.drop and (self.around, self.max_pieces) != (200, 10):
            yield Problem(
                "action", "drop", "around and max_pieces say how to cut, and nothing is cut", "around=200 max_pieces=10"
            )

    def build(self, models: Models) -> Step | Comparison:
        from llmfactory.data.clean.decontaminate import WithoutEvaluations, WithoutRareEvaluations

        return WithoutEvaluations(self) if self.frequent is None else WithoutRareEvaluations(self)


class Unlikely(Enum):
    """How unlikely a text is to a language model."""

    bits_per_byte = "bits per byte of UTF-8, which do not depend on the tokenizer"
    perplexity_per_word = "exp of the nats per word; a Chinese character or kana is one"


class Part(Enum):
    """Parts of a corpus by likelihood (Wenzek et al. 2020, section 3.4)."""

    head = "up to the first bound: like what the model was trained on"
    middle = "up to the second bound"
    tail = "beyond it"


@dataclass(kw_only=True, slots=True)
class Perplexity(CleanSpec):
    """Keeps documents that a language model of this project finds likely (CCNet, Wenzek et al. 2020)."""

    init: str | None = None
    """Run or checkpoint of the model: trained on text that is good (model=kneser_ney counts in a minute)."""
    measure: Unlikely = Unlikely.bits_per_byte
    """What the limits and bounds are numbers of."""
    most: float | None = None
    """Documents above are dropped; None: no limit."""
    least: float | None = None
    """Documents below are dropped: lists and repetitions are likely, too; None: no limit."""
    bounds: list[float] = field(default_factory=list)
    """Where head and middle end; the part of each document is counted in the report. Empty: there are no parts."""
    keep: list[Part] = field(default_factory=lambda: list(Part))
    """Parts whose documents stay."""

    def problems(self) -> Iterator[Problem]:
        if not self.init:
            yield Problem(
                "init", self.init, "a trained language model is needed: llmfactory model=kneser_ney", "init=outputs/<run>"
            )
        yield from at_least(self, 0.0, "most", "least")
        if self.most is None and self.least is None and not self.bounds:
            yield Problem("most", None, "nothing says what is dropped", "most=2.5")
        if self.most is not None and self.least is not None and self.least > self.most:
            yield Problem("least", self.least, f"nothing is between it and most={self.most}", f"least={self.most}")
        if self.bounds and (len(self.bounds) != 2 or self.bounds[0] > self.bounds[1]):
            yield Problem(
                "bounds", self.bounds, "two numbers, the smaller one first: where head and middle end", "bounds=[1.5,2.5]"
            )
        if not self.keep:
            yield Problem("keep", [], "no document would stay", "keep=[head,middle]")
        if not self.bounds and set(self.keep) != set(Part):
            yield Problem("keep", [part.name for part in self.keep], "without bounds there are no parts", "bounds=[1.5,2.5]")

    def build(self, models: Models) -> Step:
        from llmfactory.data.clean.perplexity import LikelyText

        return LikelyText(self, models)


@dataclass(kw_only=True, slots=True)
class Classifier(CleanSpec):
    """Keeps documents of a class, by a classifier trained with this project (stage=finetune data=examples data/task=classify)."""

    init: str | None = None
    """Run or checkpoint of the classifier."""
    label: str | None = None
    """The class that is kept."""
    threshold: float = 0.5
    """Least probability of it. A text longer than the model's rows is judged by its beginning."""

    def problems(self) -> Iterator[Problem]:
        if not self.init:
            reason = "a trained classifier is needed: llmfactory stage=finetune data=examples data/task=classify"
            yield Problem("init", self.init, reason, "init=outputs/<run>")
        if self.label is None:
            yield Problem("label", None, "nothing says which class is kept", "label=good")
        yield from between(self, 0.0, 1.0, "threshold")

    def build(self, models: Models) -> Step:
        from llmfactory.data.clean.classifier import OfClass

        return OfClass(self, models)
