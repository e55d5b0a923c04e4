"""Decisions and texts are those of the rules, written down plainly."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from llmfactory.core.errors import ConfigError
from llmfactory.data.clean.characters import count_sentences
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.quality_spec import C4
from llmfactory.data.clean.step import Drop, Kept, Outcome

LINES = [
    "This is a good line.",
    "  Is this one good, too?  ",
    'He said "this is one."',
    "No mark at the end",
    "Two words.",
    "It goes on and on...",
    "",
    "Turn JavaScript on, please.",
    "We use cookies on this site.",
    "Read our Privacy Policy now!",
    "This was shown by them [1].",
    "[2] It was shown again.",
    "The mark is behind it. [3]",
    "Lorem ipsum dolor sit amet.",
    "lorem ipsum without an end",
    "if (x) { return y; } is code!",
    "{ a bracket without an end",
    "x" * 30 + " is a long word.",
    "One. Two. Three and four.",
    "a\u2028b c d e.",
]
GOOD = "This is a good line.\n" * 5


def outcome(text: str, **options: Any) -> Outcome:
    return C4(**options).build(None).apply(Page("a", text))  # type: ignore[arg-type]


def text_of(found: Outcome) -> str:
    assert isinstance(found, Kept), found
    return found.text


def plain(text: str, spec: C4) -> tuple[str, str]:
    """Raffel et al. 2020, section 2.2, line by line, for text without Chinese characters: ("kept", text) or ("dropped", reason)."""
    lines, sentences = [], 0
    for line in map(str.strip, text.splitlines()):
        words = line.split()
        if any(len(word) > spec.max_word_length for word in words):
            continue
        if spec.citations:
            line = re.sub(r"\[\d*\]|\[edit\]|\[citation needed\]", "", line)
        if spec.terminal and (line[-1:] not in [*".?!\"'"] or line[-3:] == "..."):
            continue
        if len(words) < spec.min_words:
            continue
        if spec.placeholder and "lorem ipsum" in line.lower():
            return "dropped", "lorem ipsum"
        if spec.boilerplate and "javascript" in line.lower():
            continue
        if spec.curly and "{" in line:
            return "dropped", "curly bracket"
        phrases = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
        if spec.boilerplate and any(phrase in line.lower() for phrase in phrases):
            continue
        sentences += count_sentences(line)
        lines.append(line.strip())
    if sentences < spec.min_sentences:
        return "dropped", "too few sentences"
    return "kept", "\n".join(lines).strip()


def test_equals_the_rules() -> None:
    numbers, seen = random.Random(0), set()
    for _ in range(3000):
        lines = numbers.choices(LINES if numbers.random() < 0.5 else LINES[:13], k=numbers.randrange(12))
        text = numbers.choice(["\n", "\n\n", "\r\n"]).join(lines)
        flags = {name: numbers.random() < 0.7 for name in ("terminal", "citations", "boilerplate", "placeholder", "curly")}
        spec = C4(
            min_words=numbers.choice([0, 3, 5]),
            max_word_length=numbers.choice([20, 1000]),
            min_sentences=numbers.choice([0, 3, 5]),
            **flags,
        )
        found = spec.build(None).apply(Page("a", text))  # type: ignore[arg-type]
        got = ("dropped", found.reason) if isinstance(found, Drop) else ("kept", found.text)
        assert got == plain(text, spec), text
        seen.add(got[1] if got[0] == "dropped" else "kept")
    assert len(seen) == 4


def test_what_is_taken_out_is_counted() -> None:
    found = outcome(GOOD + "\n".join(LINES[:13]) + "\n" + "y" * 1001 + " word word.")
    assert isinstance(found, Kept)
    assert found.changes == {
        "lines without a terminal mark taken out": 3,
        "lines of few words taken out": 1,
        "empty lines taken out": 1,
        "lines about JavaScript taken out": 1,
        "lines about cookies or terms taken out": 2,
        "citation marks": 2,
        "lines with a long word taken out": 1,
    }
    assert outcome(GOOD) == Kept(GOOD.strip(), {"white space taken out": 1})
    assert outcome(GOOD.strip()) == Kept(GOOD.strip())


def test_terminal() -> None:
    text = GOOD + "no end here"
    assert "no end" not in text_of(outcome(text))
    assert "no end" in text_of(outcome(text, terminal=False))


def test_min_words_and_max_word_length() -> None:
    text = GOOD + "Two words.\nOne extraordinary word."
    assert text_of(outcome(text)).endswith("One extraordinary word.")
    assert "Two words." in text_of(outcome(text, min_words=2))
    assert "extraordinary" in text_of(outcome(text, max_word_length=13))
    assert "extraordinary" not in text_of(outcome(text, max_word_length=12))


def test_min_sentences() -> None:
    assert isinstance(outcome(GOOD, min_sentences=5), Kept)
    assert outcome(GOOD, min_sentences=6) == Drop("too few sentences", "5 < 6")


def test_citations_boilerplate_placeholder_and_curly() -> None:
    for option, line, reason in (
        ("citations", "This was shown [citation needed].", None),
        ("boilerplate", "We use of cookies and terms of use.", None),
        ("placeholder", "A Lorem Ipsum text.", "lorem ipsum"),
        ("curly", "Here is {one}.", "curly bracket"),
    ):
        found = outcome(GOOD + line)
        assert (found.reason if isinstance(found, Drop) else None) == reason
        assert isinstance(found, Drop) or line not in found.text
        assert text_of(outcome(GOOD + line, **{option: False})).endswith(line)


CHINESE = ["今天天气很好。", "他问：“你去吗？”", "「好！」她说。", "我们一起去公园！", "为什么不呢？"]


def test_chinese() -> None:
    text = "\n".join([*CHINESE, "没有标点的一行", "未完……", "好。", "请阅读我们的隐私政策。", "本站使用Cookie，谢谢。"])
    found = outcome(text)
    assert isinstance(found, Kept)
    assert found.text.split("\n") == CHINESE
    assert sum(found.changes.values()) == 5
    long = "这是一个很长的句子，" * 200 + "完。"
    assert long in text_of(outcome(f"{text}\n{long}")), "a Chinese sentence is no long word"


def test_what_is_left_stays() -> None:
    numbers = random.Random(1)
    for _ in range(300):
        text = "\n".join(numbers.choices([line for line in LINES if "[" not in line] + CHINESE, k=12))
        found = outcome(text, min_sentences=1)
        if isinstance(found, Kept):
            assert outcome(found.text, min_sentences=1) == Kept(found.text)


def test_options_out_of_bounds() -> None:
    with pytest.raises(ConfigError, match="min_words=0"):
        C4(min_words=-1)
    with pytest.raises(ConfigError, match="max_word_length=1"):
        C4(max_word_length=0)
