"""Token files with documents of given lengths, written by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from llmfactory.data.tokens import TokenFile

END = 0


@pytest.fixture
def token_file(tmp_path: Path) -> Callable[..., TokenFile]:
    """`token_file([3, 0, 5])`: documents of 3, 0 and 5 tokens, all of them different; `mask`: 1 for each token that is a target."""
    names = itertools.count()

    def make(lengths: Sequence[int], dtype: str = "<u2", mask: Sequence[int] | None = None) -> TokenFile:
        fresh = itertools.count(1)
        stream, offsets = [END], [0]
        for length in lengths:
            stream += [*itertools.islice(fresh, length), END]
            offsets.append(len(stream) - 1)
        path = tmp_path / str(next(names))
        np.array(stream, dtype).tofile(path.with_suffix(".bin"))
        np.array(offsets, "<i8").tofile(path.with_suffix(".offsets"))
        if mask is not None:
            np.array(mask, np.uint8).tofile(path.with_suffix(".mask"))
        return TokenFile.beside(path.with_suffix(".bin"), np.dtype(dtype), END)

    return make
