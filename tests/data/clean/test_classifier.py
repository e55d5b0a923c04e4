"""Documents of a class, with a classifier whose figures are known."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from llmfactory.core.errors import ConfigError, UserError
from llmfactory.data.clean.classifier import OfClass
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.privacy_spec import Classifier
from llmfactory.data.clean.step import Drop, Kept, Outcome


class Known:
    """Texts are the probability of the class good."""

    opened = 0

    def likelihood(self, init: str) -> Callable[[Sequence[str]], list[tuple[float, int]]]:
        raise NotImplementedError

    def classifier(self, init: str) -> Callable[[Sequence[str]], list[dict[str, float]]]:
        Known.opened += 1
        return lambda texts: [{"bad": 1 - float(text), "good": float(text)} for text in texts]

    def fingerprint(self, init: str) -> str:
        return init


def built(**options: Any) -> OfClass:
    step = Classifier(**{"init": "run", "label": "good", **options}).build(Known())
    assert isinstance(step, OfClass)
    return step


def apply(text: str, **options: Any) -> Outcome:
    return built(**options).apply(Page("a", text))


def test_the_class_is_kept_from_the_threshold_on() -> None:
    assert apply("0.5") == Kept("0.5", label="bad")  # the first of two as likely
    assert apply("0.51") == Kept("0.51", label="good")
    assert apply("0.49") == Drop("another class", "p(good) 0.4900 < 0.5")
    assert apply("0.3", threshold=0.3) == Kept("0.3", label="bad")
    assert apply("0.29996", threshold=0.3) == Kept("0.29996", label="bad")  # the fifth decimal decides nothing
    assert apply("0.3", label="bad") == Kept("0.3", label="bad")
    assert apply("0.9", label="bad") == Drop("another class", "p(bad) 0.1000 < 0.5")


def test_many_at_once_in_order() -> None:
    Known.opened = 0
    step = built()
    outcomes = step.apply_many([Page("a", text) for text in ("0.1", "0.9", "0.2", "0.6")])
    assert [isinstance(outcome, Kept) for outcome in outcomes] == [False, True, False, True]
    assert step.apply_many([]) == []
    assert Known.opened == 1
    assert pickle.loads(pickle.dumps(step)).apply(Page("a", "0.9")) == Kept("0.9", label="good")
    assert Known.opened == 2


def test_a_class_that_the_model_does_not_know() -> None:
    with pytest.raises(UserError, match=r"data\.clean\.classifier\.label=fine is no class of run, which tells apart: bad, good"):
        apply("0.5", label="fine")


def test_fingerprints() -> None:
    options: list[dict[str, Any]] = [{}, {"init": "other"}, {"label": "bad"}, {"threshold": 0.4}]
    assert len({built(**chosen).fingerprint() for chosen in options}) == len(options)


@pytest.mark.parametrize(
    ("options", "path"), [({"init": None}, "init"), ({"label": None}, "label"), ({"threshold": 1.5}, "threshold")]
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Classifier(**{"init": "run", "label": "good", **options})
    assert [problem.path for problem in caught.value.problems] == [path]
