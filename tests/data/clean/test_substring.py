"""Repeated passages, against a table of all passages."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import pytest

from llmfactory.core.errors import ConfigError, MissingExtra
from llmfactory.data.clean import substring as module
from llmfactory.data.clean.dedup_spec import Substring
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.step import Drop, Kept, Outcome
from llmfactory.data.clean.substring import SubstringStep


def step(**options: Any) -> SubstringStep:
    return SubstringStep(Substring(**{"min_bytes": 16, "min_left": 0.0, **options}))


def outcomes(texts: list[str], **options: Any) -> list[Outcome]:
    return step(**options).apply_many([Page("", text) for text in texts])


def reference(texts: list[bytes], least: int) -> set[int]:
    """Bytes of all texts in a row that stand before, those of cut characters left out."""
    first: dict[bytes, int] = {}
    gone: set[int] = set()
    start = 0
    for text in texts:
        for at in range(len(text) - least + 1):
            place = start + at
            before = first.setdefault(text[at : at + least], place)
            if before != place:
                gone |= set(range(max(place, before + least), place + least))
        start += len(text)
    data, start = b"".join(texts), 0
    for text in texts:
        for at in range(len(text)):
            size = 1 if text[at] < 0x80 else (2 if text[at] < 0xE0 else 3 if text[at] < 0xF0 else 4)
            its = set(range(start + at, start + at + size))
            if data[start + at] & 0xC0 != 0x80 and not its <= gone:
                gone -= its
        start += len(text)
    return gone


@pytest.mark.parametrize("alphabet", ["ab", "aaaaaaab", "a中席é😀🙀", "abcdefgh "])
@pytest.mark.parametrize("seed", range(3))
def test_it_finds_what_a_table_finds(monkeypatch: pytest.MonkeyPatch, alphabet: str, seed: int) -> None:
    monkeypatch.setattr(module, "AT_ONCE", (1 << 20, 7, 100)[seed])
    draw = random.Random(seed)
    pool = ["".join(draw.choices(alphabet, k=draw.randrange(5, 40))) for _ in range(12)]
    texts = ["".join(draw.choices(pool, k=draw.randrange(6))).encode() for _ in range(25)]
    ends = np.cumsum([len(text) for text in texts])
    spans = step().repeats(b"".join(texts), ends)
    found = [at for begin, end in spans.tolist() for at in range(begin, end)]
    assert len(found) == len(set(found))
    assert set(found) == reference(texts, 16)
    assert found == sorted(found)
    assert 0 < len(found) < ends[-1]


def test_the_first_occurrence_stays() -> None:
    passage = "the same words that stand in both of them"
    texts = [f"one {passage} end", f"two {passage} fin", passage, f"{passage[:15]}!"]
    assert outcomes(texts) == [
        Kept(texts[0]),
        Kept("two fin", {"repeated passages": 1}),
        Drop("nothing but repeated passages"),
        Kept(texts[3]),
    ]
    assert outcomes(texts, min_left=0.3)[1] == Drop("little but repeated passages", "14% left")
    assert outcomes(texts, min_bytes=60)[1] == Kept(texts[1])


def test_borders_of_documents_are_no_passage() -> None:
    texts = ["abcdefgh", "ijklmnop", "abcdefgh", "ijklmnop", "abcdefghijklmnop"]
    assert outcomes(texts) == [Kept(text) for text in texts]


def test_copies_side_by_side_are_of_their_own_documents() -> None:
    texts = ["the first of the two", "and this is the other"]
    assert outcomes([*texts, *texts, texts[0] + "!"])[2:] == [
        Drop("nothing but repeated passages"),
        Drop("nothing but repeated passages"),
        Kept("!", {"repeated passages": 1}),
    ]


def test_characters_stay_whole() -> None:
    passage = "中文的句子很长很长"
    assert outcomes([f"中{passage}中", f"席{passage}乭"])[1] == Kept("席乭", {"repeated passages": 1})  # share two bytes, and two
    assert outcomes([f"甲{passage}乙", f"甸{passage}乛"])[1] == Kept("甸乛", {"repeated passages": 1})
    assert outcomes([f"😀{passage}😁", f"😂{passage}🙃"])[1] == Kept("😂🙃", {"repeated passages": 1})
    assert outcomes(["\ud800" + passage, "\ud801" + passage])[1] == Kept("\ud801", {"repeated passages": 1})


def test_white_space_stays_between_what_was_apart() -> None:
    passage = "words that are in both"
    for before, between, after, expected in (
        ("left. ", passage, " right", "left.  right"),
        ("left", f" {passage} ", "right", "left right"),
        ("left", f"\n{passage} ", "right", "left\nright"),
        ("左", "中文的句子很长很长", "右", "左右"),
        ("", f"{passage}\n", "right", "right"),
    ):
        assert outcomes([between, before + between + after])[1].text == expected


def test_a_text_that_repeats_itself_keeps_its_first_passage() -> None:
    assert outcomes(["a" * 1000]) == [Kept("a" * 16, {"repeated passages": 1})]
    assert outcomes(["abc" * 300]) == [Kept(("abc" * 6)[:16], {"repeated passages": 1})]


def test_empty_and_short_texts() -> None:
    texts = ["", "a", "", "a", "中"]
    assert outcomes(texts) == [Kept(text) for text in texts]
    assert outcomes([]) == []
    assert step().apply(Page("", "word " * 50)) == Kept("word word word w", {"repeated passages": 1})


def test_a_second_pass_finds_nothing() -> None:
    draw = random.Random(4)
    passages = ["".join(draw.choices("abcdefghij ", k=60)) for _ in range(10)]
    texts = ["".join(draw.choices("klmnopqrst ", k=80)) + draw.choice(passages) + f"{i} {draw.random()}" for i in range(60)]
    first = outcomes(texts)
    left = [outcome.text for outcome in first if isinstance(outcome, Kept)]
    assert len(left) == 60
    assert sum(map(len, left)) < sum(map(len, texts)) - 45 * 60
    assert outcomes(left) == [Kept(text) for text in left]


def test_block_mib_is_what_is_seen_at_once() -> None:
    assert step(block_mib=3).block_bytes == 3 << 20
    assert step(block_mib=3).fingerprint() != step().fingerprint()


def test_the_library_is_named_if_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydivsufsort", None)
    with pytest.raises(MissingExtra, match=r"llmfactory\[data\]"):
        step()


def test_impossible_numbers() -> None:
    with pytest.raises(ConfigError, match=r"(?s)min_bytes.*min_left.*block_mib"):
        Substring(min_bytes=3, min_left=-1.0, block_mib=0)
