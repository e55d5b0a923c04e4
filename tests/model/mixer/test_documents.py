"""Where documents begin, with padding anywhere and over calls."""

from __future__ import annotations

import torch

from llmfactory.core.context import CausalMask, Context, DocumentMask
from llmfactory.model.mixer.documents import documents


def test_rows_without_segments_are_one_document_each() -> None:
    context = Context(torch.arange(3)[None], CausalMask(3))
    found = documents(torch.zeros(2, 3), context)
    assert found.real_BT.all()
    assert found.starts_BT.tolist() == [[True, False, False]] * 2
    assert found.last_B.tolist() == [1, 1]
    again = documents(torch.zeros(2, 3), context, found.last_B)
    assert not again.starts_BT.any()


def test_padding_is_passed_over() -> None:
    segments = torch.tensor([[0, 0, 1, 0, 1, 2, 0], [3, 3, 0, 0, 4, 4, 4], [0, 0, 0, 0, 0, 0, 0]])
    context = Context(segments, DocumentMask(segments), segments=segments)
    found = documents(segments, context)
    assert found.starts_BT.int().tolist() == [[0, 0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 1, 0, 0], [0] * 7]
    assert found.last_B.tolist() == [2, 4, 0]
    after = documents(segments, context, torch.tensor([1, 2, 5]))
    assert after.starts_BT.int().tolist() == [[0, 0, 0, 0, 0, 1, 0], [1, 0, 0, 0, 1, 0, 0], [0] * 7]
    assert after.last_B.tolist() == [2, 4, 5]
