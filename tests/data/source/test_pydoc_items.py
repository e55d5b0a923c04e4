"""Questions about the standard library: what they say, how many are held out, and that a model of `pydocs` has seen none of those."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmfactory.core.errors import ConfigError
from llmfactory.data.overlap import overlap
from llmfactory.data.pack.spec import Concat
from llmfactory.data.prepare import prepare
from llmfactory.data.shard import group_number
from llmfactory.data.source.account import Account
from llmfactory.data.source.document import Document, Source
from llmfactory.data.source.pydoc_items import QUESTIONS, Item, ItemSource
from llmfactory.data.source.pydocs import PythonDocs
from llmfactory.data.source.spec import PydocChoices, PydocPairs, PydocQa
from llmfactory.data.spec import Corpus
from llmfactory.data.split import Side, choose, choose_by
from llmfactory.data.tokenizer.spec import Bytes

SHARE, MOST = 0.2, 16_000_000


def read(source: Source, account: Account | None = None) -> list[Document]:
    (unit,) = source.units()
    return list(source.documents(unit, account or Account(0.0)))


@pytest.fixture(scope="module")
def found() -> dict[str, tuple[ItemSource, list[Document], Account]]:
    qa, pairs, choices = PydocQa().build(), PydocPairs(rejected=3).build(), PydocChoices().build()
    account, sources = Account(0.0), {"qa": qa, "pairs": pairs, "choices": choices}
    assert isinstance(qa, ItemSource)
    items = qa._items(account)
    for source in sources.values():  # they are the same for all, and cost seconds
        assert isinstance(source, ItemSource)
        source._items = lambda account: items  # type: ignore[method-assign]
        source._library = qa._library
    accounts = {"qa": account, "pairs": Account(0.0), "choices": Account(0.0)}
    return {name: (source, read(source, accounts[name]), accounts[name]) for name, source in sources.items()}  # type: ignore[misc]


def rows(documents: list[Document]) -> dict[str, dict[str, Any]]:
    return {document.name: json.loads(document.text) for document in documents}


def sides(documents: list[Document], weights: Any = None) -> np.ndarray:
    group = np.array([group_number(d.group) for d in documents], np.uint64)
    evaluated = np.array([d.evaluated for d in documents])
    if weights is not None:
        return choose_by(weights, group, evaluated, SHARE, MOST)
    return choose(group, np.array([len(d.text.encode()) for d in documents]), evaluated, SHARE, MOST)


def test_a_question_is_answered_by_its_docstring(found: dict[str, tuple[ItemSource, list[Document], Account]]) -> None:
    asked = rows(found["qa"][1])
    join = asked["os.path.join(a, *p)"]
    assert join["instruction"] in {question.format("os.path.join(a, *p)") for question in QUESTIONS}
    assert join["output"].startswith("Join two or more pathname components, inserting '/' as needed.")
    said = asked["textwrap.fill(text, width, **kwargs)"]["output"]
    assert said == "Fill a single paragraph of text, returning a new string."
    assert {question.format(name) == row["instruction"] for name, row in asked.items() for question in QUESTIONS} == {True, False}
    phrasings = [sum(row["instruction"] == question.format(name) for name, row in asked.items()) for question in QUESTIONS]
    assert min(phrasings) > 0.8 * len(asked) / len(QUESTIONS)


def test_everything_is_counted(found: dict[str, tuple[ItemSource, list[Document], Account]]) -> None:
    few = "too few other docstrings in its module"
    reasons = {name: {reason: one.documents for reason, one in its[2].drops.by_reason.items()} for name, its in found.items()}
    short, long = "a docstring of less than 3 words", "a paragraph of more than 300 characters"
    assert {short, long} <= reasons["qa"].keys() <= {short, long, "a second one of its name"}
    assert reasons["pairs"].keys() == reasons["choices"].keys() == {few}
    for name, (_, documents, account) in found.items():
        firsts = sum(", row " not in document.name for document in documents)
        assert firsts + reasons[name].get(few, 0) == account.good > 6000


def test_other_answers_are_of_the_same_module(found: dict[str, tuple[ItemSource, list[Document], Account]]) -> None:
    answers: dict[str, set[str]] = {}
    modules: dict[str, set[str]] = {}
    for name, row in rows(found["qa"][1]).items():
        answers.setdefault(row["output"], set()).add(name)
    for document in found["qa"][1]:
        modules.setdefault(document.group, set()).add(json.loads(document.text)["output"])
    own = {row["instruction"]: row["output"] for row in rows(found["qa"][1]).values()}
    for document in found["pairs"][1]:
        row = json.loads(document.text)
        assert row["chosen"] == own[row["prompt"]] != row["rejected"]
        assert row["rejected"] in modules[document.group]
        assert document.evaluated <= (", row " not in document.name)
    for document in found["choices"][1]:
        row = json.loads(document.text)
        assert row["answers"][0] == own[row["prompt"]]
        assert len(set(row["answers"])) == 4
        assert row["scores"] == [1.0, 0.0, 0.0, 0.0]
        assert set(row["answers"]) <= modules[document.group]


def test_held_out_modules_are_those_of_pydocs_and_nothing_of_them_is_in_its_training_part(
    found: dict[str, tuple[ItemSource, list[Document], Account]],
) -> None:
    """At least 1,000 items of each kind, none of whose groups, names or words a model that was pretrained on pydocs has seen."""
    docs = PythonDocs()
    library = read(docs)
    side = sides(library)
    trained = {d.group for d, one in zip(library, side, strict=True) if one == Side.train}
    texts = [d.text for d, one in zip(library, side, strict=True) if one == Side.train]
    for source, documents, _ in found.values():
        its = sides(documents, source.weights())
        held = [d for d, one in zip(documents, its, strict=True) if one == Side.held_out]
        learned = [d for d, one in zip(documents, its, strict=True) if one == Side.train]
        assert len(held) >= 1000
        assert {d.group for d in held}.isdisjoint(trained)
        assert {d.group for d in learned}.isdisjoint({d.group for d in held})
        assert {d.group for d in learned} <= trained
    held_answers = [json.loads(d.text)["output"] for d in held_items(found["qa"])]
    assert overlap(held_answers, texts).max() == 0.0
    assert overlap([texts[0][:2000]], texts).max() == 1.0  # the measure finds what is there


def held_items(one: tuple[ItemSource, list[Document], Account]) -> list[Document]:
    return [d for d, side in zip(one[1], sides(one[1], one[0].weights()), strict=True) if side == Side.held_out]


def test_options_change_the_rows_and_the_fingerprint(found: dict[str, tuple[ItemSource, list[Document], Account]]) -> None:
    fewer, more = PydocPairs(rejected=1).build(), PydocPairs(rejected=2).build()
    assert fewer.fingerprint() != more.fingerprint()
    assert PydocChoices(choices=3).build().fingerprint() != PydocChoices(choices=4).build().fingerprint()
    assert PydocQa().build().fingerprint() != PydocQa(items=9).build().fingerprint()
    few = PydocQa(items=9).build()
    assert isinstance(few, ItemSource)
    few._items = found["qa"][0]._items  # type: ignore[method-assign]
    names = [document.name for document in read(few)]
    assert len(names) == 9
    assert set(names) < {document.name for document in found["qa"][1]}
    one, *others = (Item(f"m.f{number}()", f"m.f{number}()", "m", f"the answer {number}", True) for number in range(6))
    assert isinstance(fewer, ItemSource)
    assert isinstance(more, ItemSource)
    assert [len(source.rows(one, others)) for source in (fewer, more)] == [1, 2]
    three = PydocChoices(choices=3).build()
    assert isinstance(three, ItemSource)
    assert [len(row["answers"]) for row in three.rows(one, others)] == [3]
    assert three.rows(one, others[:1]) == []
    twice = PydocChoices(choices=3, rankings=4).build()
    assert isinstance(twice, ItemSource)
    rankings = [row["answers"] for row in twice.rows(one, others)]
    assert [len(answers) for answers in rankings] == [3, 3]  # of five others
    assert rankings[0] == three.rows(one, others)[0]["answers"]
    assert len({*rankings[0][1:], *rankings[1][1:]}) == 4
    assert {answers[0] for answers in rankings} == {one.answer}
    for wrong in (
        lambda: PydocPairs(rejected=0),
        lambda: PydocChoices(choices=1),
        lambda: PydocChoices(rankings=0),
        lambda: PydocQa(items=0),
    ):
        with pytest.raises(ConfigError):
            wrong()


def test_the_split_of_another_corpus_is_honoured(tmp_path: Path) -> None:
    """By preparing itself, not only by the function that it calls."""
    spec = Corpus(source=PydocQa(), tokenizer=Bytes(), pack=Concat(), seq_len=64, held_out=SHARE, cache=str(tmp_path), workers=1)
    prepared = prepare(spec, 300)
    source = spec.source.build()
    documents = read(source)
    its = sides(documents, source.weights())
    assert prepared.counts["held_out"]["documents"] == int((its == Side.held_out).sum()) >= 1000
    assert prepared.counts["train"]["documents"] == int((its == Side.train).sum()) >= 4000
