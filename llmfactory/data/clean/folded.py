"""Texts that count as equal: brought into one form and hashed.

The hash is 64 bits of BLAKE2b, for which no one can make two texts alike. Among n different texts any two are taken for equal with a
chance of n^2 / 2^65: 3 % for a thousand million, where one text is lost then.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.clean.dedup_spec import ByTextSpec
from llmfactory.data.clean.shingles import marks

DIGIT = re.compile(r"\d")


def folded(text: str, spec: ByTextSpec) -> str:
    """The form that all equal texts share."""
    if spec.ignore_marks:
        text = _marks().sub("", unicodedata.normalize("NFKC", text))
    elif spec.ignore_space:
        text = " ".join(text.split())
    if spec.ignore_case:
        text = text.casefold()
    if spec.ignore_digits:
        text = DIGIT.sub("0", text)
    return text


def digests(texts: Iterable[str]) -> NDArray[np.uint64]:
    """Hash of each."""
    hashes = (blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(hashes), "<u8").astype(np.uint64)


@functools.cache
def _marks() -> re.Pattern[str]:
    """Runs of all that is part of no word."""
    return re.compile("[" + "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in marks()) + "]+")
