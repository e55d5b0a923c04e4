"""What is held out: whole groups, a fair share, nothing that is also trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from llmfactory.core.errors import UserError
from llmfactory.data import split as module
from llmfactory.data.shard import Shards, ShardWriter, group_number
from llmfactory.data.sides import SPLIT, Deciding, Looking, Sides, SourceTraits, Splitting, account
from llmfactory.data.source.account import Account
from llmfactory.data.source.document import Document, Source
from llmfactory.data.source.pydocs import PythonDocs
from llmfactory.data.split import Side, choose
from llmfactory.data.tally import Reason
from llmfactory.data.tasks import Workers, run

WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "omicron",
    "pi",
    "rho",
    "sigma",
    "tau",
]


def divided(
    documents: Sequence[Document],
    share: float,
    folder: Path,
    *,
    can_cut: bool = True,
    max_overlap: float = 0.5,
    most: int = 1 << 40,
    shards: int = 2,
    dropped: dict[str, Reason] | None = None,
) -> tuple[list[str], list[str]]:
    """Texts of the training part and of the held-out part, by the tasks that a preparation does."""
    work = folder / str(len(list(folder.iterdir())))
    for number, its in enumerate(np.array_split(np.arange(len(documents)), shards)):
        place = work / "shards" / f"{number:05d}"
        place.mkdir(parents=True)
        writer = ShardWriter(place, "given")
        for document in (documents[i] for i in its.tolist()):
            writer.add(document.name, document.text, group_number(document.group), document.evaluated)
        writer.close()
    traits = {"given": SourceTraits(can_cut, max_overlap)}
    workers = Workers(1)

    def quiet(label: str, done: int, total: int) -> None:
        assert 0 <= done <= total

    split = run(Splitting(shards_folder=work / "shards", share=share, most=most, traits=traits), work, workers, quiet)
    looking = Looking(shards_folder=work / "shards", split_folder=split / "00000")
    looked = run(looking, work, workers, quiet)
    sides = run(Deciding(looking=looking, looked_folder=looked, share=share, traits=traits), work, workers, quiet) / "00000"
    decided, found = Sides(sides), Shards.of(work / "shards")
    parts: dict[str, list[str]] = {"train": [], "held_out": []}
    for number in range(len(found)):
        for part, text in decided.parts(number, found.entry(number).text):
            parts[part].append(text)
    step = account(sides).steps[SPLIT]
    assert step.seen == len(documents) == step.kept + sum(reason.documents for reason in step.dropped.values())
    if dropped is not None:
        dropped.update(step.dropped)
    return parts["train"], parts["held_out"]


def all_of(source: Source) -> list[Document]:
    return [document for unit in source.units() for document in source.documents(unit, Account(0.0))]


def unlike(count: int, size: int = 40) -> list[str]:
    """Texts that have no 13 words in common."""
    return [" ".join(f"{WORDS[(i * 7 + k) % len(WORDS)]}{i}x{k}" for k in range(size)) for i in range(count)]


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.5, 0.9])
def test_the_share_is_met_by_bytes(share: float, tmp_path: Path) -> None:
    texts = [text * (1 + i % 3) for i, text in enumerate(unlike(200))]
    train, held_out = divided([Document(str(i), text, str(i)) for i, text in enumerate(texts)], share, tmp_path)
    assert sorted(train + held_out) == sorted(texts)
    assert sum(map(len, held_out)) / sum(map(len, texts)) == pytest.approx(share, rel=0.3, abs=0.006)


def test_groups_stay_together_and_the_choice_is_stable(tmp_path: Path) -> None:
    documents = [Document(str(i), text, f"group {i % 40}") for i, text in enumerate(unlike(200))]
    _, held_out = divided(documents, 0.1, tmp_path)
    groups = {document.group for document in documents if document.text in held_out}
    assert len(held_out) == 5 * len(groups)
    _, reversed_order = divided(documents[::-1], 0.1, tmp_path)
    assert set(reversed_order) == set(held_out)


def test_no_share_keeps_everything(tmp_path: Path) -> None:
    train, held_out = divided([Document("a", "text", "a")], 0, tmp_path)
    assert (train, held_out) == (["text"], [])


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_the_end_of_a_single_document_is_held_out(share: float, tmp_path: Path) -> None:
    text = "".join(f"speaker {i}\n  says word{i} and wörd{i + 1}\n\n" for i in range(200))
    (train,), (held_out,) = divided([Document("play", text, "play")], share, tmp_path)
    assert train + held_out == text
    assert train.endswith("\n\n")
    assert len(held_out) / len(text) == pytest.approx(share, rel=0.2)


@pytest.mark.parametrize("text", ["ab", "é" * 50, "數" * 41, "one line of words " * 40, "\n" * 30 + "x", "x\ny"])
def test_any_single_document_can_be_cut(text: str, tmp_path: Path) -> None:
    (train,), (held_out,) = divided([Document("a", text, "a")], 0.1, tmp_path)
    assert train + held_out == text
    assert train
    assert held_out


def test_two_documents_one_of_them_large(tmp_path: Path) -> None:
    large, small = "\n".join(unlike(50)), unlike(51)[-1][:40]
    for documents in ([large, small], [small, large]):
        train, held_out = divided([Document(text[:5], text, text[:5]) for text in documents], 0.1, tmp_path)
        assert 0.05 < sum(map(len, held_out)) / (len(large) + len(small)) < 0.2
        assert sum(map(len, train + held_out)) == len(large) + len(small)


def test_held_out_documents_that_are_trained_on_are_dropped(tmp_path: Path) -> None:
    documents = [Document(str(i), text, str(i)) for i, text in enumerate(unlike(100))]
    train, held_out = divided(documents, 0.1, tmp_path)
    trained = next(i for i, document in enumerate(documents) if document.text in train)
    documents[trained] = Document("quotes", f"before {held_out[0]} after", str(trained))
    copied = next(document.name for document in documents if document.text == held_out[0])
    dropped: dict[str, Reason] = {}
    train, fewer = divided(documents, 0.1, tmp_path, dropped=dropped)
    assert any(held_out[0] in text for text in train)
    assert fewer == held_out[1:]
    (sample,) = dropped["held out, but also in the training part"].samples
    assert (sample.name, sample.detail) == (copied, "100% of its 13-word sequences")


@pytest.mark.parametrize("documents", [[], [Document("a", "same", "same"), Document("b", "same", "same")]])
def test_what_cannot_be_held_out_is_an_error(documents: list[Document], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.held_out=0"):
        divided(documents or [Document("a", "x", "a")], 0.1, tmp_path, can_cut=bool(documents))


def test_documents_for_training_only_leave_with_their_group(tmp_path: Path) -> None:
    texts = unlike(60)
    documents = [
        Document(f"{i} {kind}", f"{kind} {texts[i]}", str(i), kind == "page") for i in range(60) for kind in ("page", "source")
    ]
    dropped: dict[str, Reason] = {}
    train, held_out = divided(documents, 0.1, tmp_path, can_cut=False, max_overlap=0.0, dropped=dropped)
    assert all(text.startswith("page") for text in held_out)
    assert not {text.split(" ", 1)[1] for text in held_out} & {text.split(" ", 1)[1] for text in train}
    assert dropped["of a held-out group, for training only"].documents == len(held_out)


def test_no_held_out_documentation_stands_in_the_training_part(tmp_path: Path) -> None:
    """The default job's promise: neither a document nor any 13 words in a row of one."""
    dropped: dict[str, Reason] = {}
    source = PythonDocs()
    train, held_out = divided(all_of(source), 0.05, tmp_path, can_cut=False, max_overlap=source.max_overlap, dropped=dropped)
    everything = " ".join("\n\n".join(train).split())
    grams = {tuple(words[i : i + 13]) for text in train for words in [text.split()] for i in range(len(words) - 12)}
    for text in held_out:
        words = text.split()
        assert " ".join(words) not in everything
        assert not [words[i : i + 13] for i in range(len(words) - 12) if tuple(words[i : i + 13]) in grams]
    assert 50_000 < sum(len(text.encode()) for text in held_out) < 250_000
    assert len(held_out) > 20
    assert "held out, but also in the training part" in dropped


def test_the_number_of_shards_changes_nothing(tmp_path: Path) -> None:
    documents = [Document(str(i), text, f"group {i % 40}") for i, text in enumerate(unlike(120))]
    found = [divided(documents, 0.1, tmp_path, shards=shards) for shards in (1, 3, 50)]
    assert found[0] == found[1] == found[2]


def test_no_more_than_so_many_bytes_are_held_out(tmp_path: Path) -> None:
    documents = [Document(str(i), text, str(i)) for i, text in enumerate(unlike(200))]
    _, held_out = divided(documents, 0.5, tmp_path, most=5000)
    assert sum(map(len, held_out)) == pytest.approx(5000, rel=0.1)


def test_very_many_documents_are_held_out_by_their_hashes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANY", 1000)
    draw = np.random.default_rng(0)
    group, size = draw.integers(0, 2**64, 20_000, np.uint64), draw.integers(1, 1000, 20_000)
    evaluated = draw.random(20_000) < 0.9
    side = choose(group, size, evaluated, 0.05, 1 << 40)
    assert size[side == Side.held_out].sum() / size[evaluated].sum() == pytest.approx(0.05, rel=0.1)
    assert not (side[~evaluated] == Side.held_out).any()
    alone = choose(group[:1500], size[:1500], evaluated[:1500], 0.05, 1 << 40)
    share = size[:1500][evaluated[:1500]].sum() * 0.05
    assert size[:1500][alone == Side.held_out].sum() == pytest.approx(share, rel=0.3)
