"""What is held out: whole groups, a fair share, nothing that is also trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.source.document import Document, Drops, Source
from llmfactory.data.source.pydocs import PythonDocs
from llmfactory.data.split import split
from llmfactory.data.spool import Spool

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


class Given(Source):
    def __init__(self, documents: Sequence[Document], *, can_cut: bool = True, max_overlap: float = 0.5) -> None:
        self.given, self.can_cut, self.max_overlap = documents, can_cut, max_overlap

    def fingerprint(self) -> str:
        return repr(self.given)

    def size(self) -> int:
        return sum(len(document.text) for document in self.given)

    def documents(self, drops: Drops) -> Iterator[Document]:
        yield from self.given


def divided(source: Source, share: float, folder: Path, drops: Drops | None = None) -> tuple[list[str], list[str]]:
    """Texts of the training part and of the held-out part."""
    drops = Drops() if drops is None else drops
    spool = Spool(folder / "spool")
    for document in source.documents(drops):
        spool.add(document)
    try:
        parts = split(source, spool, share, drops)
        return list(spool.texts(parts.train)), list(spool.texts(parts.held_out))
    finally:
        spool.close()


def unlike(count: int, size: int = 40) -> list[str]:
    """Texts that have no 13 words in common."""
    return [" ".join(f"{WORDS[(i * 7 + k) % len(WORDS)]}{i}x{k}" for k in range(size)) for i in range(count)]


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.5, 0.9])
def test_the_share_is_met_by_bytes(share: float, tmp_path: Path) -> None:
    texts = [text * (1 + i % 3) for i, text in enumerate(unlike(200))]
    train, held_out = divided(Given([Document(str(i), text, str(i)) for i, text in enumerate(texts)]), share, tmp_path)
    assert sorted(train + held_out) == sorted(texts)
    assert sum(map(len, held_out)) / sum(map(len, texts)) == pytest.approx(share, rel=0.3, abs=0.006)


def test_groups_stay_together_and_the_choice_is_stable(tmp_path: Path) -> None:
    documents = [Document(str(i), text, f"group {i % 40}") for i, text in enumerate(unlike(200))]
    _, held_out = divided(Given(documents), 0.1, tmp_path)
    groups = {document.group for document in documents if document.text in held_out}
    assert len(held_out) == 5 * len(groups)
    _, reversed_order = divided(Given(documents[::-1]), 0.1, tmp_path)
    assert set(reversed_order) == set(held_out)


def test_no_share_keeps_everything(tmp_path: Path) -> None:
    train, held_out = divided(Given([Document("a", "text", "a")]), 0, tmp_path)
    assert (train, held_out) == (["text"], [])


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_the_end_of_a_single_document_is_held_out(share: float, tmp_path: Path) -> None:
    text = "".join(f"speaker {i}\n  says word{i} and wörd{i + 1}\n\n" for i in range(200))
    (train,), (held_out,) = divided(Given([Document("play", text, "play")]), share, tmp_path)
    assert train + held_out == text
    assert train.endswith("\n\n")
    assert len(held_out) / len(text) == pytest.approx(share, rel=0.2)


@pytest.mark.parametrize("text", ["ab", "é" * 50, "數" * 41, "one line of words " * 40, "\n" * 30 + "x", "x\ny"])
def test_any_single_document_can_be_cut(text: str, tmp_path: Path) -> None:
    (train,), (held_out,) = divided(Given([Document("a", text, "a")]), 0.1, tmp_path)
    assert train + held_out == text
    assert train
    assert held_out


def test_two_documents_one_of_them_large(tmp_path: Path) -> None:
    large, small = "\n".join(unlike(50)), unlike(51)[-1][:40]
    for documents in ([large, small], [small, large]):
        train, held_out = divided(Given([Document(text[:5], text, text[:5]) for text in documents]), 0.1, tmp_path)
        assert 0.05 < sum(map(len, held_out)) / (len(large) + len(small)) < 0.2
        assert sum(map(len, train + held_out)) == len(large) + len(small)


def test_held_out_documents_that_are_trained_on_are_dropped(tmp_path: Path) -> None:
    documents = [Document(str(i), text, str(i)) for i, text in enumerate(unlike(100))]
    train, held_out = divided(Given(documents), 0.1, tmp_path)
    trained = next(i for i, document in enumerate(documents) if document.text in train)
    documents[trained] = Document("quotes", f"before {held_out[0]} after", str(trained))
    copied = next(document.name for document in documents if document.text == held_out[0])
    drops = Drops()
    train, fewer = divided(Given(documents), 0.1, tmp_path, drops)
    assert any(held_out[0] in text for text in train)
    assert fewer == held_out[1:]
    assert drops.plain()["held out, but also in the training part"]["samples"] == [f"{copied}: 100% of its 13-word sequences"]


@pytest.mark.parametrize("documents", [[], [Document("a", "same", "same"), Document("b", "same", "same")]])
def test_what_cannot_be_held_out_is_an_error(documents: list[Document], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.held_out=0"):
        divided(Given(documents or [Document("a", "x", "a")], can_cut=bool(documents)), 0.1, tmp_path)


def test_documents_for_training_only_leave_with_their_group(tmp_path: Path) -> None:
    texts = unlike(60)
    documents = [
        Document(f"{i} {kind}", f"{kind} {texts[i]}", str(i), kind == "page") for i in range(60) for kind in ("page", "source")
    ]
    drops = Drops()
    train, held_out = divided(Given(documents, can_cut=False, max_overlap=0.0), 0.1, tmp_path, drops)
    assert all(text.startswith("page") for text in held_out)
    assert not {text.split(" ", 1)[1] for text in held_out} & {text.split(" ", 1)[1] for text in train}
    assert drops.plain()["of a held-out group, for training only"]["documents"] == len(held_out)


def test_no_held_out_documentation_stands_in_the_training_part(tmp_path: Path) -> None:
    """The default job's promise: neither a document nor any 13 words in a row of one."""
    drops = Drops()
    train, held_out = divided(PythonDocs(), 0.05, tmp_path, drops)
    everything = " ".join("\n\n".join(train).split())
    grams = {tuple(words[i : i + 13]) for text in train for words in [text.split()] for i in range(len(words) - 12)}
    for text in held_out:
        words = text.split()
        assert " ".join(words) not in everything
        assert not [words[i : i + 13] for i in range(len(words) - 12) if tuple(words[i : i + 13]) in grams]
    assert 50_000 < sum(len(text.encode()) for text in held_out) < 250_000
    assert len(held_out) > 20
    assert "held out, but also in the training part" in drops.plain()
