"""Toxic words, in English at the borders of words and in Chinese anywhere. The words here are harmless."""

from __future__ import annotations

import builtins
import pickle
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from llmfactory.core.errors import ConfigError, MissingExtra, UserError
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.privacy_spec import Against, Measure, Toxicity
from llmfactory.data.clean.step import Drop, Kept, Outcome
from llmfactory.data.clean.toxicity import ToxicWords, read

WORDS = "# a comment\nPig\nbad  word\t2.5\n\n坏蛋  # another\n坏\t0.5\nc++\nかば\nok吧\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(WORDS, encoding="utf-8")
    return path


def built(file: Path, **options: Any) -> ToxicWords:
    step = Toxicity(files=[str(file)], **options).build(None)  # type: ignore[arg-type]
    assert isinstance(step, ToxicWords)
    return step


def apply(file: Path, text: str, **options: Any) -> Outcome:
    return built(file, **options).apply(Page("a", text))


COUNT = {"measure": Measure.count, "threshold": 1.0}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a pig.", "count 1: pig"),
        ("PIG, Pig_ pig", "count 2: pig"),
        ("one Bad Word here", "count 2.5: bad word"),
        ("你这个坏蛋！", "count 1: 坏蛋"),
        ("坏 坏", "count 1: 坏"),
        ("我pig吧", "count 1: pig"),
        ("use C++.", "count 1: c++"),
        ("なかばか", "count 1: かば"),
        ("他说ok吧。", "count 1: ok吧"),
        ("pig 坏蛋 c++ かば", "count 4: pig, 坏蛋, c++, ..."),
    ],
)
def test_words_are_found_and_weighed(file: Path, text: str, shown: str) -> None:
    assert apply(file, text, **COUNT) == Drop("toxic words", shown)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pigs spigot pig5 5pig pig_ épig",
        "badword bad\nword bad words xbad word",
        "好人",
        "cc++",
        "book吧",
        "坏 once",
        "\ud800",
        "坏\udfff",
    ],
)
def test_what_stays(file: Path, text: str) -> None:
    assert apply(file, text, **COUNT) == Kept(text)


def test_the_threshold_is_reached_not_passed(file: Path) -> None:
    text = "pig " + "a " * 99
    assert isinstance(apply(file, text), Drop)
    assert isinstance(apply(file, text + "a"), Kept)
    assert isinstance(apply(file, "坏蛋" + "好" * 198), Drop)  # a phrase counts as many words as it has
    assert isinstance(apply(file, "坏蛋" + "好" * 199), Kept)
    assert isinstance(apply(file, "bad word " + "a " * 498, threshold=0.01), Drop)  # 2.5 x 2 of 500
    assert isinstance(apply(file, "bad word " + "a " * 499, threshold=0.01), Kept)
    assert isinstance(apply(file, "pig pig", measure=Measure.count, threshold=2.0), Drop)
    assert isinstance(apply(file, "pig", measure=Measure.count, threshold=2.0), Kept)


def test_lines_are_taken_out(file: Path) -> None:
    text = "fine\r\na pig\nfine too\n坏蛋\nbad\nword"
    assert apply(file, text, action=Against.line, **COUNT) == Kept("fine\r\nfine too\nbad\nword", {"toxic line": 2})
    assert apply(file, "a pig\n坏蛋", action=Against.line, **COUNT) == Drop("toxic words", "in every line: pig, 坏蛋")
    two = {"measure": Measure.count, "threshold": 2.0, "action": Against.line}
    assert apply(file, "a pig\npig pig\n坏", **two) == Kept("a pig\n坏", {"toxic line": 1})
    share = "pig a b c\npig " + "a " * 20
    assert apply(file, share, action=Against.line, threshold=0.2) == Kept("pig " + "a " * 20, {"toxic line": 1})


def test_words_are_masked(file: Path) -> None:
    outcome = apply(file, "A Pig, 大坏蛋 and spigot", action=Against.mask, **COUNT)
    assert outcome == Kept("A ***, 大** and spigot", {"masked word": 2})
    assert apply(file, outcome.text, action=Against.mask, **COUNT) == Kept(outcome.text)
    assert apply(file, "坏", action=Against.mask, **COUNT) == Kept("坏")


def test_letters_spelled_as_digits_by_option(file: Path) -> None:
    assert isinstance(apply(file, "a p1g p!g", **COUNT), Kept)
    assert apply(file, "a P1G", leetspeak=True, **COUNT) == Kept("a P1G")  # 1 stands for l
    (file.parent / "more.txt").write_text("hello\n")
    assert isinstance(apply(file.parent / "more.txt", "h3ll0", leetspeak=True, **COUNT), Drop)
    assert isinstance(apply(file.parent / "more.txt", "h3ll0", **COUNT), Kept)
    assert isinstance(apply(file.parent / "more.txt", "h3ll00", leetspeak=True, **COUNT), Kept)


def test_of_words_over_each_other_the_longest_of_the_first_counts(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("甲乙\n甲乙丙\n乙丙丁\n丁\n", encoding="utf-8")
    assert apply(tmp_path / "w.txt", "甲乙丙丁", action=Against.mask, **COUNT) == Kept("****", {"masked word": 2})


def test_against_a_search_for_each_word(tmp_path: Path) -> None:
    draw = random.Random(0)
    words = sorted({"".join(draw.choices("ab", k=draw.randrange(1, 5))) for _ in range(8)} | {"甲", "乙甲", "a甲", "甲b", "b乙a"})
    (tmp_path / "w.txt").write_text("\n".join(words), encoding="utf-8")
    step = built(tmp_path / "w.txt", action=Against.mask, measure=Measure.count, threshold=0.5)
    spaced = "[ab0]"
    for _ in range(500):
        text = "".join(draw.choices("aaabbb甲乙 .0", k=draw.randrange(30)))
        expected, place = [], 0
        while place < len(text):
            here = [
                word
                for word in words
                if text.startswith(word, place)
                and not (re.match(spaced, word[0]) and re.search(f"{spaced}$", text[:place]))
                and not (re.match(spaced, word[-1]) and re.match(spaced, text[place + len(word) :]))
            ]
            size = len(max(here, key=len)) if here else 0
            expected.append("*" * size if size else text[place])
            place += size or 1
        outcome = step.apply(Page("a", text))
        assert isinstance(outcome, Kept)
        assert outcome.text == "".join(expected)


def test_many_words_cost_no_more(tmp_path: Path) -> None:
    draw = random.Random(0)
    words = {"".join(draw.choices("甲乙丙丁戊己庚辛壬癸", k=6)) for _ in range(20_000)} | {"a" * n for n in range(1, 300)}
    (tmp_path / "w.txt").write_text("\n".join(sorted(words)), encoding="utf-8")
    step = built(tmp_path / "w.txt", **COUNT)
    start = time.process_time()
    step.apply(Page("a", "".join(draw.choices("甲乙丙丁戊己庚辛壬癸", k=300_000))))
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"# only\n", "is empty"),
        (b"a\n\xff", "not UTF-8"),
        (b"a\tmuch\n", "line 1: the weight 'much'"),
        (b"a\nb\t-1", "line 2"),
        (b"a\tnan", "nan"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "w.txt").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read(tmp_path / "w.txt")
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "none.txt")


def test_it_goes_to_other_processes_and_says_what_it_depends_on(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = pickle.loads(pickle.dumps(built(file, **COUNT)))
    assert isinstance(step.apply(Page("a", "pig")), Drop)
    options: list[dict[str, Any]] = [
        {}, COUNT, {"threshold": 0.5}, {"action": Against.mask}, {"action": Against.line}, {"leetspeak": True},
    ]  # fmt: skip
    prints = {built(file, **chosen).fingerprint() for chosen in options}
    file.write_text(WORDS + "more\n", encoding="utf-8")
    prints.add(built(file).fingerprint())
    assert len(prints) == len(options) + 1

    def missing(name: str, *rest: Any) -> Any:
        if name == "ahocorasick_rs":
            raise ImportError(name)
        return imported(name, *rest)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtra, match="ahocorasick_rs"):
        built(file)


def test_several_lists(file: Path) -> None:
    (file.parent / "more.txt").write_text("duck\npig\t3\n")
    step = Toxicity(files=[str(file), str(file.parent / "more.txt")], **COUNT).build(None)  # type: ignore[arg-type]
    assert isinstance(step, ToxicWords)
    assert step.apply(Page("a", "duck 坏蛋 pig")) == Drop("toxic words", "count 5: duck, 坏蛋, pig")


@pytest.mark.parametrize(
    ("options", "path"), [({"files": []}, "files"), ({"threshold": 0.0}, "threshold"), ({"threshold": 3.0}, "threshold")]
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Toxicity(**{"files": ["a"], **options})
    assert [problem.path for problem in caught.value.problems] == [path]
