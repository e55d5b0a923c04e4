"""Documents by likelihood, with a model whose figures are known."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from llmfactory.core.errors import ConfigError
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.perplexity import LikelyText
from llmfactory.data.clean.privacy_spec import Part, Perplexity, Unlikely
from llmfactory.data.clean.step import Drop, Kept, Outcome


class Known:
    """Texts begin with their nats; `opened` counts how often a model is opened."""

    opened = 0

    def __init__(self, weights: str = "w") -> None:
        self.weights = weights

    def likelihood(self, init: str) -> Callable[[Sequence[str]], list[tuple[float, int]]]:
        assert init == "run"
        Known.opened += 1
        return lambda texts: [(float(text.split()[0]), 1) for text in texts]

    def classifier(self, init: str) -> Callable[[Sequence[str]], list[dict[str, float]]]:
        raise NotImplementedError

    def fingerprint(self, init: str) -> str:
        return f"{self.weights} {init}"


def built(models: Known | None = None, **options: Any) -> LikelyText:
    step = Perplexity(init="run", **options).build(models or Known())
    assert isinstance(step, LikelyText)
    return step


def apply(text: str, **options: Any) -> Outcome:
    return built(**options).apply(Page("a", text))


def test_bits_per_byte_of_utf8() -> None:
    text = "7.5 中文"  # ten bytes
    bits = 7.5 / math.log(2) / 10
    assert apply(text, most=bits + 1e-4) == Kept(text)
    assert apply(text, most=bits - 1e-4) == Drop("too unlikely", f"bits_per_byte {bits:.4f} > {bits - 1e-4:g}")
    assert apply(text, least=bits - 1e-4) == Kept(text)
    assert apply(text, least=bits + 1e-4) == Drop("too likely", f"bits_per_byte {bits:.4f} < {bits + 1e-4:g}")


def test_perplexity_per_word() -> None:
    text = "7.5 中文 x"  # four words
    value = math.exp(7.5 / 4)
    for options, kept in (({"most": value + 0.01}, True), ({"most": value - 0.01}, False)):
        outcome = apply(text, measure=Unlikely.perplexity_per_word, **options)
        assert isinstance(outcome, Kept) is kept
    assert isinstance(apply("1e9 x", measure=Unlikely.perplexity_per_word, most=1e9), Drop)


def test_head_middle_and_tail() -> None:
    texts = [f"{nats} " + "x" * 90 for nats in ("010", "100", "200")]  # 94 bytes: 0.15, 1.53, 3.07 bits
    step = built(bounds=[1.0, 2.0])
    assert step.apply_many([Page("a", text) for text in texts]) == [
        Kept(text, label=part) for text, part in zip(texts, ("head", "middle", "tail"), strict=True)
    ]
    step = built(bounds=[1.0, 2.0], keep=[Part.head, Part.middle])
    assert step.apply(Page("a", texts[2])) == Drop("tail", f"bits_per_byte {200 / math.log(2) / 94:.4f}")
    assert step.apply(Page("a", texts[1])) == Kept(texts[1], label="middle")
    edge = round(10 / math.log(2) / 94, 4)
    assert built(bounds=[edge, 2.0]).apply(Page("a", texts[0])) == Kept(texts[0], label="head")


def test_a_model_is_opened_once_in_each_process_and_only_where_it_is_asked() -> None:
    Known.opened = 0
    step = built(most=1.0)
    assert step.fingerprint().startswith("perplexity 1 w run")
    assert Known.opened == 0
    step.apply(Page("a", "1 x"))
    step.apply_many([Page("a", "1 x"), Page("b", "2 x")])
    assert step.apply_many([]) == []
    assert Known.opened == 1
    again = pickle.loads(pickle.dumps(step))
    again.apply(Page("a", "1 x"))
    assert Known.opened == 2


def test_fingerprints() -> None:
    options: list[dict[str, Any]] = [
        {"most": 1.0}, {"most": 2.0}, {"least": 1.0}, {"bounds": [1.0, 2.0]}, {"bounds": [1.0, 2.0], "keep": [Part.head]},
        {"most": 1.0, "measure": Unlikely.perplexity_per_word},
    ]  # fmt: skip
    prints = {built(**chosen).fingerprint() for chosen in options} | {built(Known("other"), most=1.0).fingerprint()}
    assert len(prints) == len(options) + 1


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"init": None, "most": 1.0}, "init"),
        ({}, "most"),
        ({"most": 1.0, "least": 2.0}, "least"),
        ({"bounds": [1.0]}, "bounds"),
        ({"bounds": [2.0, 1.0]}, "bounds"),
        ({"bounds": [1.0, 2.0], "keep": []}, "keep"),
        ({"most": 1.0, "keep": [Part.head]}, "keep"),
        ({"most": -1.0}, "most"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Perplexity(**{"init": "run", **options})
    assert [problem.path for problem in caught.value.problems] == [path]
