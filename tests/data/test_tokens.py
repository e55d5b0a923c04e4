"""Token files."""

from __future__ import annotations

from collections.abc import Callable

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
