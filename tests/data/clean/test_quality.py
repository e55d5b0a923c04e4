"""What holds for all steps that look at one page: they take any text, need time in proportion to it, and repeat themselves."""

from __future__ import annotations

import pickle
import random
import time
from collections.abc import Callable, Mapping

import pytest

from llmfactory.data.clean import quality_spec
from llmfactory.data.clean.base_spec import CleanSpec
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.step import Drop, Kept, Step

SPECS: dict[str, Callable[[], CleanSpec]] = {
    "html": lambda: quality_spec.Html(),
    "html_always": lambda: quality_spec.Html(detect=False),
    "unicode": lambda: quality_spec.Unicode(half_width=True),
    "language": lambda: quality_spec.Language(),
    "gopher_quality": lambda: quality_spec.GopherQuality(min_words=1),
    "gopher_repetition": lambda: quality_spec.GopherRepetition(),
    "c4": lambda: quality_spec.C4(min_sentences=0),
    "fineweb": lambda: quality_spec.Fineweb(min_terminal=0, max_short=1),
    "length": lambda: quality_spec.Length(max_bytes=100),
    "code": lambda: quality_spec.Code(),
}
IDEMPOTENT = {"unicode", "gopher_quality", "gopher_repetition", "fineweb", "length", "code", "language"}
"""What they keep they keep again, unchanged. (`html` of text is text; `c4` may take out a line that a citation mark made long enough.)"""
MB = 1_000_000


@pytest.fixture(params=list(SPECS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def step(name: str) -> Step:
    found = SPECS[name]().build(None)  # type: ignore[arg-type]
    assert isinstance(found, Step)
    return found


def texts() -> list[str]:
    """Edge cases, and random ones of all planes of Unicode."""
    numbers = random.Random(0)
    edges = [
        "",
        " ",
        "\n",
        "a",
        "。",
        "你",
        "😀",
        "\ud800",
        "\udfff\ud800",
        "\x00",
        "\ufeff",
        "<",
        "<html>",
        "{}",
        "[",
        "#",
        "...",
        "- \n- ",
    ]
    edges += [
        "\n" * 50,
        "…\n" * 9,
        "a " * 60,
        "的 是" * 40,
        "\u2028" * 9,
        "0 " * 60,
        "é" * 70,
        "a\u0301" * 40,
        "\t\x0b\x0c\x1c\x85 x",
    ]
    pieces = [
        *"ab Z.,!?#-{}<>/\n\r\t\"'[]&;=…•。，！？的是我\u3000\u200b\ud800Ã©\x92",
        "http://a.b/c",
        "<p>",
        "</p>",
        "the ",
        "javascript ",
    ]
    for _ in range(250):
        everywhere = [chr(numbers.randrange(numbers.choice([128, 0x300, 0x10000, 0x110000]))) for _ in range(8)]
        edges.append("".join(numbers.choices([*pieces, *everywhere], k=numbers.randrange(1, 120))))
    return edges


def test_any_text_has_an_outcome_and_always_the_same(name: str, step: Step, prose: Callable[..., str]) -> None:
    numbers = random.Random(1)
    again: Step = pickle.loads(pickle.dumps(step))
    assert again.fingerprint() == step.fingerprint()
    reasons = set()
    for text in [*texts(), *(prose(numbers, chinese) for chinese in (False, True) for _ in range(40))]:
        outcome = step.apply(Page("a", text))
        assert outcome == again.apply(Page("b", text)), ascii(text)
        if isinstance(outcome, Drop):
            reasons.add(outcome.reason)
            continue
        assert bool(outcome.changes) >= (outcome.text != text), ascii(text)
        assert all(count > 0 for count in outcome.changes.values())
        if name in IDEMPOTENT:
            assert step.apply(Page("a", outcome.text)) == Kept(outcome.text, {}, outcome.label), ascii(text)
    assert not any(character.isdigit() for reason in reasons - TABLE_A1 for character in reason), "figures belong into the detail"


TABLE_A1 = {f"most frequent {n} words" for n in (2, 3, 4)} | {f"duplicate sequences of {n} words" for n in range(5, 11)}


def huge() -> Mapping[str, Callable[[int], str]]:
    return {
        "letters": lambda size: "a" * size,
        "spaces": lambda size: " " * size,
        "line ends": lambda size: "\n" * size,
        "blank lines": lambda size: " \n\n" * (size // 3),
        "words": lambda size: " ".join(f"word{i % 5000}" for i in range(size // 8)),
        "the same words": lambda size: "the be to of " * (size // 13),
        "Chinese": lambda size: "我们今天去看书，很好。" * (size // 11),
        "numbers": lambda size: "0x12, " * (size // 6),
        "addresses": lambda size: "a.b@" * (size // 4),
        "brackets": lambda size: "[" * size,
        "marks": lambda size: "…—" * (size // 2),
        "wrong": lambda size: "Ã©" * (size // 2),
    }


@pytest.mark.parametrize("kind", list(huge()))
def test_time_is_linear(name: str, step: Step, kind: str) -> None:
    """A line of a megabyte takes seconds at most: what is quadratic would take minutes."""
    text = huge()[kind](MB)
    step.apply(Page("warm", text[:2000]))
    start = time.process_time()
    step.apply(Page("a", text))
    assert time.process_time() - start < 5


def test_every_fingerprint_depends_on_the_options() -> None:
    prints = {name: spec().build(None).fingerprint() for name, spec in SPECS.items()}  # type: ignore[arg-type]
    assert len(set(prints.values())) == len(SPECS)
    assert all("0x" not in text for text in prints.values())
