"""Token files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmfactory.data.tokens import TokenFile, dtype_for


@pytest.mark.parametrize(("vocab_size", "expected"), [(257, "<u2"), (65536, "<u2"), (65537, "<u4"), (128256, "<u4")])
def test_the_smallest_type_that_holds_all_ids(vocab_size: int, expected: str) -> None:
    assert dtype_for(vocab_size).str == expected
    assert np.iinfo(dtype_for(vocab_size)).max >= vocab_size - 1


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_documents_and_targets(token_file: Callable[..., TokenFile], dtype: str) -> None:
    tokens = token_file([2, 0, 3], dtype)
    assert tokens.tokens.tolist() == [0, 1, 2, 0, 0, 3, 4, 5, 0]
    assert type(tokens.tokens) is np.ndarray
    assert not tokens.tokens.flags.writeable
    assert [tokens.document(i) for i in range(tokens.documents)] == [[1, 2], [], [3, 4, 5]]
    assert tokens.targets == 8


def test_no_document(token_file: Callable[..., TokenFile]) -> None:
    tokens = token_file([])
    assert (tokens.documents, tokens.targets) == (0, 0)


def test_frequencies(token_file: Callable[..., TokenFile], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmfactory.data.tokens.AT_ONCE", 2)
    assert token_file([2, 0, 3]).frequencies(7).tolist() == [4, 1, 1, 1, 1, 1, 0]


def test_a_mask_says_what_is_a_target(token_file: Callable[..., TokenFile], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmfactory.data.tokens.AT_ONCE", 2)
    tokens = token_file([2, 0, 3], mask=[1, 0, 1, 0, 0, 1, 1, 0, 1])
    assert (tokens.inputs, tokens.targets) == (8, 4)  # the first token of all is nobody's label
    assert token_file([2, 0, 3]).mask is None


def test_records_and_notes_stand_beside(tmp_path: Path) -> None:
    np.array([0, 7, 0, 8, 0, 9, 0], "<u2").tofile(tmp_path / "train.bin")
    np.array([0, 2, 4, 6], "<i8").tofile(tmp_path / "train.offsets")
    assert [len(TokenFile.beside(tmp_path / "train.bin", np.dtype("<u2"), 0).record(i)) for i in range(3)] == [1, 1, 1]
    np.array([0, 2, 3], "<i8").tofile(tmp_path / "train.records")
    (tmp_path / "train.notes").write_bytes("é🙂b".encode())
    np.array([0, 6, 6, 7], "<i8").tofile(tmp_path / "train.notes.offsets")
    tokens = TokenFile.beside(tmp_path / "train.bin", np.dtype("<u2"), 0)
    assert [list(tokens.record(i)) for i in range(2)] == [[0, 1], [2]]
    assert [tokens.note(i) for i in range(3)] == ["é🙂", "", "b"]
    assert TokenFile(tmp_path / "train.bin", tmp_path / "train.offsets", np.dtype("<u2"), 0).note(0) == ""


def test_nothing_is_read_before_it_is_looked_at(tmp_path: Path) -> None:
    for name, size in (("x.bin", 2 << 40), ("x.offsets", 8 << 30)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)  # a hole
    tokens = TokenFile.beside(tmp_path / "x.bin", np.dtype("<u2"), 0)
    assert (len(tokens.tokens), tokens.documents) == (1 << 40, (1 << 30) - 1)
