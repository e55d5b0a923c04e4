"""Words of a list, whole or inside of Chinese text. The words here are harmless."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.quality_spec import BadWords
from llmfactory.data.clean.step import Drop, Kept, Outcome, Step

WORDS = "# a comment\nPig\nbad  word\n\n坏蛋  # another\nc++\nbig-bad\nかば\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(WORDS, encoding="utf-8")
    return path


def built(file: Path, **options: Any) -> Step:
    found = BadWords(file=str(file), **options).build(None)  # type: ignore[arg-type]
    assert isinstance(found, Step)
    return found


def outcome(file: Path, text: str, **options: Any) -> Outcome:
    return built(file, **options).apply(Page("a", text))


@pytest.mark.parametrize(
    "text",
    [
        "a pig.",
        "PIG",
        "one bad word here",
        "他是个坏蛋吗",
        "我pig你",
        "I write C++, too",
        "C++",
        "the big-bad wolf",
        "大きなかばだ",
    ],
)
def test_found(file: Path, text: str) -> None:
    found = outcome(file, text)
    assert isinstance(found, Drop)
    assert found.reason == "words of the list"
    assert found.detail.startswith("1 > 0: ")


@pytest.mark.parametrize(
    "text", ["", "pigs", "spigot", "bad wording", "bad\nwords", "坏 蛋", "bc++", "big-badly", "a comment", "pig_pen"]
)
def test_not_found(file: Path, text: str) -> None:
    assert outcome(file, text) == Kept(text)


def test_max_matches(file: Path) -> None:
    text = "pig 坏蛋坏蛋 c++ ok"
    assert isinstance(outcome(file, text, max_matches=4), Kept)
    assert outcome(file, text, max_matches=3) == Drop("words of the list", "4 > 3: 坏蛋 (2), c++ (1), pig (1)")


def test_max_share(file: Path) -> None:
    assert isinstance(outcome(file, "pig a b c", max_share=0.25), Kept)
    assert isinstance(outcome(file, "pig a b", max_share=0.25), Drop)


def test_the_fingerprint_is_that_of_the_words_not_of_the_file_s_place(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("\ufeff" + WORDS + "# more\nPIG\n", encoding="utf-8")
    assert built(file).fingerprint() == built(other).fingerprint()
    other.write_text(WORDS + "horse\n", encoding="utf-8")
    assert built(file).fingerprint() != built(other).fingerprint()
    assert built(file).fingerprint() != built(file, max_matches=2).fingerprint() != built(file, max_share=0.1).fingerprint()


def test_a_list_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    with pytest.raises(UserError, match=r"words\.txt: the list of words cannot be read"):
        built(path)
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"not UTF-8 \(byte 3\)"):
        built(path)
    path.write_text("# nothing\n\n", encoding="utf-8")
    with pytest.raises(UserError, match="is empty"):
        built(path)
