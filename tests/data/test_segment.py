"""The corpus on its way: steps in order, accounts that add up, comparisons over shards, the same whoever does what."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmfactory.core.errors import UserError
from llmfactory.data import grouping, segment, tasks
from llmfactory.data.clean.comparison import Comparison, Copies, Evidence, Int64, Keys
from llmfactory.data.clean.models import Models, NoModels
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.spec import CleanSpec
from llmfactory.data.clean.step import Drop, Kept, Outcome, Step
from llmfactory.data.documents import Documents, Plan, make_documents
from llmfactory.data.form.spec import Text
from llmfactory.data.segment import Part, cut
from llmfactory.data.source.spec import Files, SourceSpec
from llmfactory.data.tasks import Workers


class Short(Step):
    def fingerprint(self) -> str:
        return "short"

    def apply(self, page: Page) -> Outcome:
        return Drop("short", f"{len(page.text)}") if len(page.text) < 12 else Kept(page.text)


class Shout(Step):
    def fingerprint(self) -> str:
        return "shout"

    def apply(self, page: Page) -> Outcome:
        marks = page.text.count("!")
        return Kept(page.text.replace("!", "."), {"marks": marks} if marks else {}, label="loud" if marks else "calm")


class Neighbours(Step):
    """Knows all pages of a block: drops the last one of each."""

    block_bytes = 300

    def fingerprint(self) -> str:
        return "neighbours"

    def apply(self, page: Page) -> Outcome:
        raise AssertionError("it wants a block")

    def apply_many(self, pages: Sequence[Page]) -> list[Outcome]:
        return [Drop("last") if page is pages[-1] else Kept(page.text) for page in pages]


class Same(Comparison):
    """Equal texts, by a key of their length and a proof of their first character, so that keys collide."""

    def fingerprint(self) -> str:
        return "same"

    def keys(self, pages: Sequence[Page]) -> Keys:
        key = np.array([hash_of(str(len(page.text))) for page in pages], np.uint64)
        evidence = np.array([[hash_of(page.text)] for page in pages], np.uint64).reshape(-1, 1)
        return Keys(np.arange(len(pages)), np.zeros(len(pages), np.int64), key, evidence)

    def copies(self, key: Any, document: Int64, item: Int64, evidence: Evidence) -> Copies:
        proof = evidence(document)[:, 0] if len(document) else np.empty(0, np.uint64)
        found = [
            (document[i], next(document[j] for j in range(i) if key[j] == key[i] and proof[j] == proof[i]))
            for i in range(len(key))
            if any(key[j] == key[i] and proof[j] == proof[i] for j in range(i))
        ]
        documents, firsts = (
            (np.array(column, np.int64) for column in zip(*found, strict=True)) if found else (np.empty(0, np.int64),) * 2
        )
        return Copies(documents, np.zeros(len(documents), np.int64), firsts)

    def apply(self, page: Page, items: Int64) -> Outcome:
        assert items.tolist() == [0]
        return Drop("a copy")


def hash_of(text: str) -> int:
    from hashlib import sha256

    return int.from_bytes(sha256(text.encode()).digest()[:8], "big")


STEPS = {"short": Short, "shout": Shout, "neighbours": Neighbours, "same": Same}


@dataclass(kw_only=True, slots=True)
class Given(CleanSpec):
    kind: str

    def build(self, models: Models) -> Step | Comparison:
        return STEPS[self.kind]()


def texts(count: int) -> list[str]:
    draw = random.Random(1)
    return [" ".join(draw.choices(["goes!", "and", "数据"], k=draw.randrange(1, 6))) for _ in range(count)]


def make(folder: Path, clean: dict[str, CleanSpec], files: dict[str, list[list[str]]], workers: int = 1) -> Documents:
    sources: dict[str, SourceSpec] = {}
    for name, contents in files.items():
        place = folder / "files" / name
        place.mkdir(parents=True, exist_ok=True)
        for number, its in enumerate(contents):
            (place / f"{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in its))
        sources[name] = Files(files=[str(place / "*.jsonl")])
    plan = Plan.of(sources, clean, Text(), NoModels())
    pool = Workers(workers)
    try:
        return make_documents(plan, folder / str(workers) / plan.fingerprint(), pool, lambda *_: None)
    finally:
        pool.close()


def left(documents: Documents) -> list[str]:
    return [documents.shards.entry(number).text for number in range(len(documents.shards))]


def check_account(documents: Documents, read: int) -> None:
    """Every record is somewhere."""
    steps = documents.tally.steps
    before = read
    for step in steps.values():
        assert step.seen == before
        assert step.seen == step.kept + sum(reason.documents for reason in step.dropped.values())
        before = step.kept
    assert before == len(documents.shards)
    assert next(reversed(steps.values())).kept_bytes == documents.shards.bytes


def test_where_a_list_of_steps_is_cut() -> None:
    steps = {name: STEPS[name]() for name in ("short", "same", "shout", "neighbours")}
    assert cut({}) == [Part(None, (), None, None, last=True)]
    assert cut(steps) == [
        Part(None, ("short",), "same"),
        Part("same", ("shout",), None),
        Part(None, ("neighbours",), None, 300, last=True),
    ]


def test_steps_work_in_their_order_and_their_accounts_add_up(tmp_path: Path) -> None:
    given = texts(100)
    documents = make(tmp_path, {"short": Given(kind="short"), "shout": Given(kind="shout")}, {"a": [given]})
    assert left(documents) == [text.replace("!", ".") for text in given if len(text) >= 12]
    check_account(documents, 100)
    step = documents.tally.steps["shout"]
    loud = [text for text in given if len(text) >= 12 and "!" in text]
    assert step.changed == step.changes["marks"].documents == len(loud)
    assert step.changes["marks"].times == sum(text.count("!") for text in loud)
    assert step.labels == {"loud": len(loud), "calm": step.kept - len(loud)}
    assert documents.about["sources"]["a"]["records"] == 100


@pytest.mark.parametrize("chunk", [1, 200, 1 << 20])
def test_copies_are_found_over_shards_sources_and_partitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(segment, "CHUNK", chunk)
    monkeypatch.setattr(segment, "PIECE", 400)
    monkeypatch.setattr(grouping, "PARTITION", 500)
    given = texts(240)
    files = {"a": [given[:50], given[50:120]], "b": [given[120:]]}
    clean: dict[str, CleanSpec] = {"short": Given(kind="short"), "same": Given(kind="same"), "shout": Given(kind="shout")}
    documents = make(tmp_path, clean, files)
    kept = list(dict.fromkeys(text for text in given if len(text) >= 12))
    assert left(documents) == [text.replace("!", ".") for text in kept]
    check_account(documents, 240)
    clusters = documents.about["copies"]["same"]
    long = [text for text in given if len(text) >= 12]
    assert clusters["copies"] == len(long) - len(kept) > 20
    assert clusters["largest"][0]["documents"] == max(map(long.count, long))


@pytest.mark.dist
def test_the_number_of_processes_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "ALONE", 0)
    from llmfactory.data.clean.spec import Exact, Length

    given = texts(200)
    clean: dict[str, CleanSpec] = {"length": Length(min_words=2, min_characters=10), "exact": Exact()}
    found = []
    for workers in (1, 2):
        documents = make(tmp_path, clean, {"a": [given[:90], given[90:]], "b": [given[::-1]]}, workers)
        found.append((left(documents), documents.tally.plain(), documents.name))
    assert found[0] == found[1]


def test_a_step_that_sees_blocks_is_given_them_whatever_the_files(tmp_path: Path) -> None:
    given = texts(60)
    documents = make(tmp_path, {"neighbours": Given(kind="neighbours")}, {"a": [given]})
    dropped = documents.tally.steps["neighbours"].dropped["last"].documents
    size = sum(len(text.encode()) for text in given)
    assert size // 300 <= dropped <= size // 300 + 1
    check_account(documents, 60)


def test_a_step_may_be_for_some_sources_only(tmp_path: Path) -> None:
    given = texts(60)
    clean: dict[str, CleanSpec] = {"shout": Given(kind="shout", sources=["b"]), "same": Given(kind="same", sources=["b"])}
    documents = make(tmp_path, clean, {"a": [given, given], "b": [given]})
    unlike = list(dict.fromkeys(text.replace("!", ".") for text in given))
    assert left(documents) == given + given + unlike
    assert documents.tally.steps["shout"].seen == 60


def test_more_bad_records_than_allowed_are_an_error_over_all_files(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in texts(40)]
    for number in range(2):
        (tmp_path / f"{number}.jsonl").write_text("\n".join([*lines[:20], "{"] if number else lines[:20]) + "\n")
    files = [str(tmp_path / "*.jsonl")]

    def documents(share: float) -> Documents:
        plan = Plan.of({"corpus": Files(files=files, bad_share=share)}, {}, Text(), NoModels())
        return make_documents(plan, tmp_path / plan.fingerprint(), Workers(1), lambda *_: None)

    with pytest.raises(
        UserError, match=r"1 of 41 records cannot be read, more than data.source.bad_share=0.01 allows.*1.jsonl, line 21"
    ):
        documents(0.01)
    allowed = documents(0.03)
    check_account(allowed, 41)
    (bad,) = [json.loads(line) for line in (allowed.folder / "quarantine.jsonl").read_text().splitlines()]
    assert (bad["where"], bad["content"]) == (f"{tmp_path / '1.jsonl'}, line 21", "{\n")


def test_an_empty_result_says_which_step_left_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no text; 2 × short \(step short\), for instance"):
        make(tmp_path, {"short": Given(kind="short")}, {"a": [["tiny", "small"]]})
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".work"]
