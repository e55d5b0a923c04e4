"""Equal documents, and what counts as equal (folded.py)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

import numpy as np
import pytest

from llmfactory.data.clean.dedup_spec import Exact
from llmfactory.data.clean.exact import ExactComparison
from llmfactory.data.clean.folded import digests, folded
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.step import Drop, Kept, Outcome

Compare = Callable[..., list[Outcome]]
PLAIN = {"ignore_space": False}


def kept(outcomes: list[Outcome]) -> list[int]:
    return [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Kept)]


@pytest.mark.parametrize(
    ("options", "text", "form"),
    [
        (PLAIN, " A  b\n7. ", " A  b\n7. "),
        ({}, " A  b\n\t7.\u3000中\u2028", "A b 7. 中"),
        ({"ignore_case": True}, "ÄSTHETIK Straße ΣΑΣ", "ästhetik strasse σασ"),
        ({"ignore_digits": True}, "1 of 23, ٤", "0 of 00, 0"),
        ({"ignore_marks": True}, "Don’t “do” it — ﬁne: Ａ１，中文。x_y 😀\n", "DontdoitfineA1中文xy"),
        ({"ignore_marks": True}, "क्या e\u0301 …", "क्याé"),
        ({"ignore_marks": True, "ignore_case": True, "ignore_digits": True}, "Page ２ of 3!", "page0of0"),
        ({}, "", ""),
        ({"ignore_marks": True}, "…!", ""),
        ({}, "\ud800 x", "\ud800 x"),
    ],
)
def test_ignore_space_case_marks_and_digits(options: dict[str, bool], text: str, form: str) -> None:
    assert folded(text, Exact(**options)) == form
    assert folded(form, Exact(**options)) == form


def test_all_marks_are_found() -> None:
    spec = Exact(ignore_marks=True)
    for code in [*range(0x3100), *range(0x9FF0, 0xD000), *range(0xE000, 0x11000, 7), 0x1F600, 0x323AF, 0xE0001, 0x10FFFF]:
        form = unicodedata.normalize("NFKC", chr(code))
        assert folded(chr(code), spec) == "".join(c for c in form if unicodedata.category(c)[0] in "LNM"), hex(code)


def test_hashes() -> None:
    texts = ["", "a", "b", "a", "中", "\ud800"]
    found = digests(texts)
    assert found.dtype == np.uint64
    assert [texts.index(texts[i]) for i in range(6)] == [found.tolist().index(value) for value in found.tolist()]
    assert digests([]).tolist() == []
    assert len(np.unique(digests(map(str, range(20_000))) >> np.uint64(24))) == 20_000


def test_the_first_of_equal_documents_stays(compare: Compare) -> None:
    texts = ["a b", "c", "a  b\n", "A b", "c.", "c", "", " ", "a b", "中文", "中 文", "中文"]
    outcomes = compare(ExactComparison(Exact()), texts)
    assert kept(outcomes) == [0, 1, 3, 4, 6, 9, 10]
    assert outcomes[2] == Drop("the same as an earlier document")
    assert outcomes[0] == Kept("a b")
    for partitions, batch in ((1, 100), (9, 1)):
        assert compare(ExactComparison(Exact()), texts, partitions, batch) == outcomes
    left = [texts[i] for i in kept(outcomes)]
    assert kept(compare(ExactComparison(Exact()), left)) == list(range(len(left)))
    assert kept(compare(ExactComparison(Exact(ignore_space=False)), texts)) == [0, 1, 2, 3, 4, 6, 7, 9, 10]
    assert kept(compare(ExactComparison(Exact(ignore_case=True)), texts)) == [0, 1, 4, 6, 9, 10]
    assert kept(compare(ExactComparison(Exact(ignore_case=True, ignore_marks=True)), texts)) == [0, 1, 6, 9]


def test_keys_and_fingerprint() -> None:
    keys = ExactComparison(Exact()).keys([Page("", "x"), Page("", "y")])
    assert keys.page.tolist() == [0, 1]
    assert keys.item.tolist() == [0, 0]
    assert ExactComparison(Exact()).fingerprint() != ExactComparison(Exact(ignore_digits=True)).fingerprint()
    assert re.search(unicodedata.unidata_version, ExactComparison(Exact()).fingerprint())
