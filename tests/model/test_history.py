"""The last tokens of a document, packed, padded and over calls."""

from __future__ import annotations

import torch

from llmfactory.core.context import CausalMask, Context, DocumentMask
from llmfactory.inference.cache import KvCache
from llmfactory.model.history import history


def context(segments: torch.Tensor, state: KvCache | None = None) -> Context:
    return Context(torch.zeros_like(segments), DocumentMask(segments), state, segments)


TOKENS = torch.tensor([[10, 11, 12, 13, 14, 15], [20, 21, 22, 23, 24, 25]])
SEGMENTS = torch.tensor([[1, 1, 1, 2, 2, 2], [0, 0, 1, 1, 1, 0]])
EXPECTED = [
    [[-1, -1, 10], [-1, 10, 11], [10, 11, 12], [-1, -1, 13], [-1, 13, 14], [13, 14, 15]],
    [None, None, [-1, -1, 22], [-1, 22, 23], [22, 23, 24], None],
]


def check(found: torch.Tensor) -> None:
    for row, expected in zip(found.tolist(), EXPECTED, strict=True):
        assert [mine for mine, want in zip(row, expected, strict=True) if want] == [want for want in expected if want]


def test_packed_and_padded_rows() -> None:
    check(history(TOKENS, context(SEGMENTS), 3, nothing=-1))


def test_rows_without_segments() -> None:
    found = history(TOKENS[:, :3], Context(TOKENS, CausalMask(3)), 2, nothing=99)
    assert found.tolist() == [[[99, 10], [10, 11], [11, 12]], [[99, 20], [20, 21], [21, 22]]]


def test_calls_go_on() -> None:
    for cuts in ([1, 2, 3, 4, 5], [3], [2, 5], [4]):
        state, pieces, start = KvCache(6), [], 0
        for end in [*cuts, 6]:
            pieces.append(history(TOKENS[:, start:end], context(SEGMENTS[:, start:end], state), 3, nothing=-1))
            start = end
        check(torch.cat(pieces, 1))


def test_one_token_is_the_token() -> None:
    assert history(TOKENS, context(SEGMENTS), 1, nothing=-1)[..., 0].tolist() == TOKENS.tolist()
