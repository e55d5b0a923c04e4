from __future__ import annotations

from collections.abc import Callable

import pytest

from llmfactory.core.errors import ConfigError
from llmfactory.stage.grader.contains import ContainsGrader
from llmfactory.stage.grader.grader import Answer
from llmfactory.stage.grader.spec import Contains

Said = Callable[..., Answer]


def test_the_share_that_is_met(said: Said) -> None:
    grader = ContainsGrader(Contains(texts=["because", "so"], without=["sorry"]))
    texts = ["because it is so", "Because it is", "so sorry", ""]
    assert grader.grade([said(text) for text in texts]) == pytest.approx([1.0, 1 / 3, 1 / 3, 1 / 3])
    blind = ContainsGrader(Contains(texts=["because", "so"], without=["sorry"], ignore_case=True))
    assert blind.grade([said("BECAUSE of that: Sorry")]) == pytest.approx([2 / 3])


@pytest.mark.parametrize(("texts", "without"), [([], []), ([""], []), (["a"], [""])])
def test_nothing_to_look_for(texts: list[str], without: list[str]) -> None:
    with pytest.raises(ConfigError):
        Contains(texts=texts, without=without)
