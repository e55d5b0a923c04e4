"""Texts of evaluation sets taken out of documents, against sets of tuples; pieces cut as Brown et al. 2020 say."""

from __future__ import annotations

import json
import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmfactory.core.errors import ConfigError, UserError
from llmfactory.data.clean.comparison import Comparison
from llmfactory.data.clean.decontaminate import WithoutEvaluations, WithoutRareEvaluations
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.privacy_spec import Contaminated, Decontaminate, Unit
from llmfactory.data.clean.step import Drop, Kept, Outcome, Step

Compare = Callable[..., list[Outcome]]
ITEM = "which of the following seven planets of our solar system has the largest number of known moons today"
CHINESE = "下列关于细胞膜结构和功能的叙述错误的是"


def filler(seed: int, words: int = 120) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghij", k=draw.randrange(2, 8))) for _ in range(words))


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    folder = tmp_path / "sets"
    folder.mkdir()
    (folder / "quiz.jsonl").write_text(json.dumps({"question": ITEM, "answer": "saturn"}) + "\n")
    (folder / "考试.json").write_text(json.dumps([{"question": CHINESE}], ensure_ascii=False), encoding="utf-8")
    return folder


def built(folder: Path, **options: Any) -> Step | Comparison:
    return Decontaminate(files=[str(folder)], **options).build(None)  # type: ignore[arg-type]


def apply(folder: Path, text: str, **options: Any) -> Outcome:
    step = built(folder, **options)
    assert isinstance(step, WithoutEvaluations)
    return step.apply(Page("a", text))


DROP = {"action": Contaminated.drop}


def test_a_document_with_an_item_is_dropped_and_the_file_is_named(sets: Path) -> None:
    for text in (
        ITEM,
        f"{filler(0)}\n{ITEM.upper()}?\n{filler(1)}",
        f"x {' '.join(ITEM.split()[:13])} y",
        re.sub(" ", ", ", ITEM),
    ):
        assert apply(sets, text, **DROP) == Drop("in quiz.jsonl", "1 × in quiz.jsonl")
    assert apply(sets, f"题目：{CHINESE}（ ）A.", **DROP) == Drop("in 考试.json", "1 × in 考试.json")
    assert apply(sets, f"{CHINESE[:13]}。另一句", **DROP) == Drop("in 考试.json", "1 × in 考试.json")
    assert apply(sets, f"{ITEM} {CHINESE} {ITEM}", **DROP) == Drop("in quiz.jsonl", "2 × in quiz.jsonl, 1 × in 考试.json")
    for text in (
        "",
        "?!",
        filler(0),
        " ".join(ITEM.split()[:12]),
        " ".join(reversed(ITEM.split())),
        CHINESE[:12],
        "saturn",
        "\ud800",
    ):
        assert apply(sets, text, **DROP) == Kept(text)


def words(text: str) -> list[str]:
    return re.findall(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+", text.lower())


def characters(text: str) -> list[str]:
    return [c for c in text.lower() if c.isalnum()]


@pytest.mark.parametrize("unit", list(Unit))
def test_what_is_hit_equals_the_reference(unit: Unit, tmp_path: Path) -> None:
    draw = random.Random(0)
    cut = words if unit is Unit.words else characters
    n, shortest = 4, 3

    def text(most: int) -> str:
        return "".join(
            draw.choice(["ab", "Cd", "中", "文", "中文", "é1", "x"]) + draw.choice([" ", "", ", ", "。"])
            for _ in range(draw.randrange(most))
        )

    items = [text(14) for _ in range(12)]
    (tmp_path / "set.jsonl").write_text("\n".join(json.dumps({"q": item}) for item in items))
    known = set()
    for item in items:
        its = cut(item)
        size = min(n, len(its))
        if size >= shortest:
            known |= {tuple(its[at : at + size]) for at in range(len(its) - size + 1)}
    step = built(tmp_path / "set.jsonl", unit=unit, n=n, shortest=shortest, **DROP)
    assert isinstance(step, WithoutEvaluations)
    outcomes = []
    for _ in range(400):
        page = text(30)
        its = cut(page)
        expected = any(
            tuple(its[at : at + size]) in known for size in range(shortest, n + 1) for at in range(len(its) - size + 1)
        )
        outcomes.append(expected)
        assert isinstance(step.apply(Page("a", page)), Drop) is expected, page
    assert 30 < sum(outcomes) < 370


def test_it_is_cut_out_with_what_stands_around_it(sets: Path) -> None:
    before, behind = filler(0), filler(1)
    outcome = apply(sets, f"{before} {ITEM} {behind}", around=50)
    assert outcome == Kept(f"{before[:-49].strip()}\n\n{behind[49:].strip()}", {"in quiz.jsonl": 1})
    # The item is found from its first word on to its last.
    assert apply(sets, before + "中" + ITEM + "中" + behind, around=0) == Kept(f"{before}中\n\n中{behind}", {"in quiz.jsonl": 1})


def test_pieces_that_are_short_or_too_many(sets: Path) -> None:
    assert apply(sets, ITEM) == Drop("nothing left around what is cut", "1 × in quiz.jsonl")
    assert apply(sets, f"{filler(0)[:390]} {ITEM}") == Drop("nothing left around what is cut", "1 × in quiz.jsonl")
    long = filler(0, 300)
    assert apply(sets, f"{long} {ITEM} short") == Kept(long[:-199].strip(), {"in quiz.jsonl": 1})
    for places, kept in ((9, True), (10, False)):  # one piece more than places
        text = f" {ITEM} ".join(filler(seed) for seed in range(places + 1))
        outcome = apply(sets, text)
        assert isinstance(outcome, Kept) is kept
        if isinstance(outcome, Kept):
            assert outcome.changes == {"in quiz.jsonl": 9}
            assert outcome.text.count("\n\n") == 9
        else:
            assert outcome == Drop("in too many pieces", "11 > 10: 10 × in quiz.jsonl")
    assert isinstance(apply(sets, text, max_pieces=11), Kept)
    # Two places near each other leave nothing between them: the pieces are three, of which one is no piece.
    near = apply(sets, f"{filler(0)} {ITEM} {'y' * 300} {ITEM} {filler(1)}")
    assert isinstance(near, Kept)
    assert "y" not in near.text
    assert near.changes == {"in quiz.jsonl": 2}


def test_done_again_nothing_changes(sets: Path) -> None:
    once = apply(sets, f"{filler(0)} {ITEM} {filler(1)} {CHINESE} {filler(2)}")
    assert isinstance(once, Kept)
    assert once.changes == {"in quiz.jsonl": 1, "in 考试.json": 1}
    assert apply(sets, once.text) == Kept(once.text)


def test_short_items_are_looked_for_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("nine words are in this one here for sure\nseven words are in this item here\n")
    folder = tmp_path / "a.txt"
    assert isinstance(apply(folder, "so: Nine words are in this one here for sure!", **DROP), Drop)
    assert isinstance(apply(folder, "nine words are in this one here for", **DROP), Kept)
    assert isinstance(apply(folder, "seven words are in this item here", **DROP), Kept)
    assert isinstance(apply(folder, "seven words are in this item here", shortest=7, **DROP), Drop)
    with pytest.raises(UserError, match=r"no text in a\.txt has data\.clean\.decontaminate\.shortest=10 words"):
        built(folder, shortest=10)


def test_fields_and_units(sets: Path) -> None:
    (sets / "考试.json").unlink()
    assert isinstance(apply(sets, ITEM, fields=["question"], **DROP), Drop)
    with pytest.raises(UserError, match="shortest"):
        built(sets, fields=["answer"])
    spaced = "".join(f"{letter} " for letter in ITEM.replace(" ", ""))
    assert isinstance(apply(sets, spaced, **DROP), Kept)
    assert isinstance(apply(sets, spaced[:99], unit=Unit.characters, n=50, **DROP), Drop)
    assert isinstance(apply(sets, spaced[:97], unit=Unit.characters, n=50, **DROP), Kept)
    assert isinstance(apply(sets, ITEM.replace("moons", "x"), n=8, **DROP), Drop)
    assert isinstance(apply(sets, ITEM.replace("moons", "x").replace("seven", "x"), n=13, **DROP), Kept)


def test_letters_whose_small_form_is_longer_keep_places_right(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(ITEM)
    text = "İİİ " * 30 + f"{ITEM} " + "İİİ " * 30
    assert apply(tmp_path / "a.txt", text, around=0) == Kept("İİİ " * 29 + "İİİ\n\n" + "İİİ " * 29 + "İİİ", {"in a.txt": 1})


def test_frequent_sequences_do_not_count(sets: Path, compare: Compare) -> None:
    rule = " ".join(CHINESE)
    texts = [f"{filler(seed)} {rule} {filler(seed + 50)}" for seed in range(4)]
    texts += [f"{filler(9)} {ITEM} {filler(10)}", f"{filler(11)} {ITEM} {ITEM} {filler(12)}", filler(13), ""]
    for partitions, batch in ((1, 8), (3, 1), (4, 3)):
        two = compare(built(sets, frequent=2, **DROP), texts, partitions, batch)
        assert [isinstance(outcome, Drop) for outcome in two] == [False] * 4 + [True, True, False, False]
        four = compare(built(sets, frequent=4, **DROP), texts, partitions, batch)
        assert [isinstance(outcome, Drop) for outcome in four] == [True] * 6 + [False] * 2
        one = compare(built(sets, frequent=1, **DROP), texts, partitions, batch)
        assert not any(isinstance(outcome, Drop) for outcome in one)
    cut = compare(built(sets, frequent=2), [*texts[:5], f"{texts[5]} {rule} {filler(14)}"])
    assert cut[4] == apply(sets, texts[4])
    assert isinstance(cut[5], Kept)
    assert cut[5].changes == {"in quiz.jsonl": 2}
    assert rule in cut[5].text
    assert compare(built(sets, frequent=2), [filler(0), ""]) == [Kept(filler(0)), Kept("")]


def test_it_goes_to_other_processes_and_says_what_it_depends_on(sets: Path) -> None:
    step = pickle.loads(pickle.dumps(built(sets, **DROP)))
    assert isinstance(step.apply(Page("a", ITEM)), Drop)
    options: list[dict[str, Any]] = [
        {}, DROP, {"n": 12}, {"shortest": 7}, {"unit": Unit.characters}, {"fields": ["question"]}, {"around": 9}, {"max_pieces": 9},
        {"frequent": 3},
    ]  # fmt: skip
    prints = {built(sets, **chosen).fingerprint() for chosen in options}
    (sets / "quiz.jsonl").write_text(json.dumps({"question": ITEM + " then", "answer": "saturn"}) + "\n")
    prints.add(built(sets).fingerprint())
    assert len(prints) == len(options) + 1
    assert isinstance(built(sets, frequent=3), WithoutRareEvaluations)


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"files": []}, "files"),
        ({"n": 5}, "shortest"),
        ({"n": 0, "shortest": 0}, "n"),
        ({**DROP, "around": 5}, "action"),
        ({"frequent": 0}, "frequent"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Decontaminate(**{"files": ["a"], **options})
    assert path in [problem.path for problem in caught.value.problems]
