"""Words, sentences and marks, in English and in Chinese."""

from __future__ import annotations

import random
import unicodedata

import pytest

from llmfactory.data.clean.characters import (
    MARKS,
    TERMINAL,
    count_sentences,
    count_unspaced,
    ends_sentence,
    has_letter,
    is_marks,
    is_unspaced,
    words_of,
)

ALPHABET = "ab Z9.,!?-—“”’…é我们很好。，、！？（）アイ々〇가ก😀\u3000\n\t\u00a0"


def plain_unspaced(character: str) -> bool:
    """By Unicode's own names."""
    name = unicodedata.name(character, "")
    han = name.startswith(("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "IDEOGRAPHIC ITERATION", "IDEOGRAPHIC NUMBER ZERO"))
    kana = name.startswith(("HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA")) and "MIDDLE DOT" not in name
    return han or kana


def test_chinese_characters_and_kana_by_their_names() -> None:
    planes = [*range(0x2E80, 0xA000), *range(0xF900, 0xFB00), *range(0xFF00, 0xFFF0), *range(0x20000, 0x20100)]
    wrong = [
        hex(code)
        for code in planes
        if unicodedata.name(chr(code), "")
        and is_unspaced(chr(code)) != plain_unspaced(chr(code))
        and code not in (0x3005, 0x3007)
        # Marks that are written on the character before, double hyphens, half a voiced mark, and fillers of other scripts.
        and not unicodedata.name(chr(code)).endswith(("SOUND MARK", "HYPHEN", "DIGRAPH KOTO", "DIGRAPH YORI"))
    ]
    assert not wrong
    assert all(map(is_unspaced, ["々", "〇", "，我", "😀 ア", "가我"]))
    assert not any(map(is_unspaced, ("abc", "é", "가", "ก", "，", "。", "😀", "")))


def test_text_without_any_is_cut_at_white_space() -> None:
    numbers = random.Random(0)
    plain = [character for character in ALPHABET if not is_unspaced(character)]
    for _ in range(300):
        text = "".join(numbers.choices(plain, k=40))
        assert words_of(text) == text.split()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("我们 use Python3.11，很好。", ["我", "们", "use", "Python3.11", "很", "好"]),
        ("他说：“don’t worry……”", ["他", "说", "don’t", "worry"]),
        ("カタカナとkanji", ["カ", "タ", "カ", "ナ", "と", "kanji"]),
        ("𠀀𠀁", ["𠀀", "𠀁"]),
        ("。，", ["。，"]),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words
    assert count_unspaced(text) == sum(len(word) == 1 and is_unspaced(word) for word in words)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("  \n", 0),
        ("One", 1),
        ("One.", 1),
        ("One. Two! Three?", 3),
        ("Version 3.11 is out.", 1),
        ('He said "no." Then he went.', 2),
        ("Wait... what?", 2),
        ("你好。他走了！是吗？", 3),
        ("他说：“你好。”然后走了。", 2),
        ("One.\nTwo", 2),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert count_sentences(text) == count


@pytest.mark.parametrize("line", ["End.", "End?", "End!", "好。", "好！", "他说：“好。”", "（好。）", "पूर्ण।"])
def test_a_sentence_s_end(line: str) -> None:
    assert ends_sentence(line)


@pytest.mark.parametrize("line", ["", "End", 'He said "no."', "End:", "好，", "“好”", "(end.)"])
def test_no_sentence_s_end(line: str) -> None:
    assert not ends_sentence(line)


def test_marks_and_letters_by_the_plain_definitions() -> None:
    numbers = random.Random(1)
    for _ in range(2000):
        word = "".join(numbers.choices(ALPHABET.replace(" ", "") + "²_•'|", k=numbers.randrange(1, 4)))
        assert is_marks(word) == all(character in MARKS for character in word), word
        assert has_letter(word) == any(map(str.isalpha, word)), word
    assert all(unicodedata.category(character)[0] in "PSC" for character in MARKS)
    assert all(unicodedata.category(character) == "Po" for character in TERMINAL)
