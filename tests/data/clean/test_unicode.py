"""Characters are mended, right ones are left alone, and what was done is counted."""

from __future__ import annotations

import random
import unicodedata
from typing import Any

import ftfy
import pytest

from llmfactory.data.clean.page import Page
from llmfactory.data.clean.quality_spec import Normal, Unicode
from llmfactory.data.clean.step import Kept
from llmfactory.data.clean.unicode import SUSPECT

OFF: dict[str, Any] = {"repair": False, "normal": Normal.none, "controls": False, "line_ends": False, "trailing": False}
ENCODINGS = ("latin-1", "cp1252", "cp1251", "cp1250", "cp1253", "cp1254", "cp1257", "iso-8859-2", "mac_roman", "cp437")


def kept(text: str, **options: Any) -> Kept:
    found = Unicode(**options).build(None).apply(Page("a", text))  # type: ignore[arg-type]
    assert isinstance(found, Kept)
    return found


def only(text: str, **options: Any) -> Kept:
    return kept(text, **{**OFF, **options})


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("schÃ¶n", "schön"),
        ("donâ€™t", "don’t"),
        ("l’humanitÃ©", "l’humanité"),
        ("schÃƒÂ¶n", "schön"),
        ("voilÃ le travail", "voilà le travail"),
        ("it\x92s", "it’s"),
        ("ä½\xa0å¥½", "你好"),
        ("ÐŸÑ€Ð¸Ð²ÐµÑ‚", "Привет"),
    ],
)
def test_repair(wrong: str, right: str) -> None:
    text = f"A line.\n{wrong}\nAnother, “right” — line…"
    assert only(text, repair=True) == Kept(f"A line.\n{right}\nAnother, “right” — line…", {"lines decoded wrongly": 1})
    assert only(text) == Kept(text)


RIGHT = [
    "Plain ASCII text.\n\tWith lines.\n",
    "“Curly” quotes — dashes … don’t; café naïve Łódź, São Tomé, 20 °C, £5, ½",
    "他说：“你好！”——真的……（１２ＡＢ）·《书》「对」　",
    "Привет, мир! Ελληνικά κείμενα. שלום עולם مرحبا",
    "👩‍👩‍👧 emoji with joiners, می‌خواهم, क्‍ष",
    "ﬁ ² ①",
]


@pytest.mark.parametrize("text", RIGHT)
def test_right_text_is_left_alone(text: str) -> None:
    assert kept(text, trailing=False) == Kept(text)


def test_text_that_is_not_suspected_is_none_of_ftfy_s() -> None:
    """The cheap look must let everything through that ftfy would mend."""
    numbers, alphabet = random.Random(0), "schön é ñ “quoted” don’t – — … 你好世界 Привет 😀 Ελληνικά à ß ½ °C €20 łódź "
    mended = 0
    for turn in range(6000):
        text = "".join(numbers.choices(alphabet, k=numbers.randrange(1, 12)))
        if turn % 3:
            text = text.encode().decode(numbers.choice(ENCODINGS), errors="replace")
        elif turn % 2:
            text = "".join(
                chr(numbers.choice([numbers.randrange(0x80, 0x250), numbers.randrange(0x2000, 0x2700)])) for _ in range(5)
            )
        changed = ftfy.fix_encoding(text) != text
        mended += changed
        assert SUSPECT.search(text) or not changed, text
    assert mended > 1000


def test_controls() -> None:
    text = "a\x00b\x1bc\x7fd\te\nf"
    assert only(text, controls=True) == Kept("abcd\te\nf", {"control characters": 3})
    assert only("é\x00\x9fé", controls=True) == Kept("éé", {"control characters": 2})
    assert only("\ufeffa\u200bb\u00adc\u202ed\u2066", controls=True) == Kept("abcd", {"invisible characters": 5})
    assert only("a\ud800b\udfff", controls=True) == Kept("a\ufffdb\ufffd", {"half surrogate pairs": 2})
    assert only(text) == Kept(text)
    everything = "".join(map(chr, range(0x110000)))
    left = set(only(everything, controls=True).text)
    assert {"\t", "\n", "\r", "\x0b", "\x0c", "\x85", "\u200c", "\u200d", "\u200e", "\ufe0f"} <= left
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in left - set("\t\n\r\x0b\x0c\x85"))


def test_line_ends() -> None:
    text = "a\r\nb\rc\x0bd\x0ce\nf"
    assert only(text, line_ends=True) == Kept("a\nb\nc\nd\ne\nf", {"line ends": 4})
    assert only("é\u2028a\u2029b\x85c\r\r\n", line_ends=True) == Kept("é\na\nb\nc\n\n", {"line ends": 5})
    assert only(text) == Kept(text)


def test_normal() -> None:
    text = "cafe\u0301 ﬁ 10² １２\nﬁ\nplain"
    assert only(text, normal=Normal.NFC) == Kept("café ﬁ 10² １２\nﬁ\nplain", {"lines in another normal form": 1})
    assert only(text, normal=Normal.NFKC) == Kept("café fi 102 12\nfi\nplain", {"lines in another normal form": 2})
    assert only(text) == Kept(text)


def test_half_width() -> None:
    text = "１２ＡＢｚ，。！（）～"
    assert only(text, half_width=True) == Kept("12ABz，。！（）～", {"full-width characters": 5})
    assert only(text) == Kept(text)


def test_trailing() -> None:
    text = "a  \nb\t\n  c\u3000\nd \u00a0"
    assert only(text, trailing=True) == Kept("a\nb\n  c\nd", {"lines with white space at the end": 4})
    assert only(text) == Kept(text)


def test_mended_text_is_not_mended_again() -> None:
    numbers = random.Random(2)
    alphabet = [
        "Ã",
        "¶",
        "â",
        "€",
        "™",
        "a",
        " ",
        "\n",
        "\r",
        "\x00",
        "\x92",
        "\u200b",
        "e",
        "\u0301",
        "１",
        "你",
        "\ud800",
        "\u3000",
        "ﬁ",
        "\xa0",
    ]
    for _ in range(3000):
        text = "".join(numbers.choices(alphabet, k=numbers.randrange(20)))
        for options in ({}, {"normal": Normal.NFKC, "half_width": True}):
            found = kept(text, **options)
            assert kept(found.text, **options) == Kept(found.text), ascii(text)
            assert bool(found.changes) == (found.text != text), ascii(text)
