"""Paragraphs that come again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from llmfactory.data.clean.dedup_spec import Lines, Paragraphs
from llmfactory.data.clean.lines import LineComparison
from llmfactory.data.clean.paragraphs import ParagraphComparison
from llmfactory.data.clean.step import Kept, Outcome

Compare = Callable[..., list[Outcome]]


def paragraphs(**options: int) -> ParagraphComparison:
    return ParagraphComparison(Paragraphs(**{"min_characters": 3, "min_left": 0.0, **options}))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("one\ntwo", ["one\ntwo"]),
        ("one\n\ntwo\n", ["one\n\n", "two\n"]),
        ("\n\none\r\n\r\ntwo\n \t\n\n  three\n\n", ["\n\n", "one\r\n\r\n", "two\n \t\n\n", "  three\n\n"]),
        ("一\n\u3000\n二", ["一\n\u3000\n", "二"]),
    ],
)
def test_blank_lines_part_paragraphs(text: str, parts: list[str]) -> None:
    assert paragraphs().split(text) == parts


def test_parts_make_up_the_text() -> None:
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices("ab\n\n\n \r中", k=draw.randrange(40)))
        for comparison in (paragraphs(), LineComparison(Lines(min_characters=1))):
            assert "".join(comparison.split(text)) == text


def test_later_copies_go(compare: Compare) -> None:
    texts = [
        "Intro.\n\nThe  rules\nare these.\n\nEnd A.",
        "Other.\n\nThe rules are\nthese.\n\nEnd B.\n",
        "are these.\n\nThe rules",
    ]
    assert compare(paragraphs(), texts) == [Kept(texts[0]), Kept("Other.\n\nEnd B.", {"repeated paragraphs": 1}), Kept(texts[2])]
    assert paragraphs().fingerprint() != LineComparison(Lines(min_characters=3, min_left=0.0)).fingerprint()


def test_blank_text_takes_no_long() -> None:
    start = time.process_time()
    for text in ("\n" * 500_000, "\n" + " " * 500_000 + "x", "\n \n" * 200_000, " \n" * 200_000 + "x"):
        paragraphs().split(text)
    assert time.process_time() - start < 2
