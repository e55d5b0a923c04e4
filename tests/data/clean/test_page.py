"""What several steps look at."""

from __future__ import annotations

import pytest

from llmfactory.data.clean.page import Page


@pytest.mark.parametrize("text", ["", "abc def", "é — 你好", "half \ud800 pair", "😀"])
def test_size_is_that_of_utf8(text: str) -> None:
    assert Page("a", text).size == len(text.encode(errors="surrogatepass"))


def test_a_changed_text_makes_a_new_page() -> None:
    page = Page("a", "one two")
    assert page.with_text("one two") is page
    changed = page.with_text("one two three")
    assert (changed.name, changed.words, page.words) == ("a", ["one", "two", "three"], ["one", "two"])


def test_words_of_a_chinese_page() -> None:
    page = Page("a", "我们用 Python 很好！！ -- 3.11")
    assert page.words == ["我", "们", "用", "Python", "很", "好", "--", "3.11"]
    assert (page.unspaced, page.single_words, page.mostly_unspaced, page.word_characters) == (True, 5, True, 17)
    assert (page.odd_words, page.mark_words) == (["--", "3.11"], ["--"])


def test_words_of_an_english_page() -> None:
    page = Page("a", "Well, this... is it… no?\nYes")
    assert page.words == page.text.split()
    assert (page.unspaced, page.mostly_unspaced, page.ellipses, page.lines) == (
        False,
        False,
        2,
        ["Well, this... is it… no?", "Yes"],
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 2 -- a 3\n.",
        "Well, (this) 3.14\tis\x1fit…\n",
        "caf\u00e9\u00a012 \u201cyes\u201d\u3000--",
        "我们用 Python 很好！！ 3",
        "a\ud800 b",
    ],
)
def test_shape_begins_each_word(text: str) -> None:
    page = Page("a", text)
    letters = [[character.isascii() and character.isalpha() for character in word] for word in page.words]
    assert page.odd_starts == sum(not word[0] for word in letters)
    assert page.letterless_words == sum(not any(map(str.isalpha, word)) for word in page.words)
    assert page.shape.count(b".") >= sum(word.count(False) for word in letters)
