"""What every mixer must do, as functions of a built one; each mixer's own test adds its equations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llmfactory.core.context import CausalMask, Context, DocumentMask
from llmfactory.inference.cache import KvCache
from llmfactory.model.initialize import initialize
from llmfactory.model.mixer.spec import MixerSpec
from llmfactory.model.part import Part

DIM = 16


def context_of(segments_BT: Tensor | None, length: int, state: KvCache | None = None) -> Context:
    if segments_BT is None:
        return Context(torch.arange(length)[None], CausalMask(length), state)
    return Context(torch.zeros_like(segments_BT), DocumentMask(segments_BT), state, segments_BT)


@pytest.fixture
def mixer(site) -> Callable[[MixerSpec], Part]:
    """Built in float64 with weights large enough that every term weighs in."""

    def make(spec: MixerSpec) -> Part:
        part = spec.build(site(std=0.5, out_std=0.5))
        initialize(part, 3)
        with torch.no_grad():
            for parameter in part.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
        return part.double()

    return make


class Laws:
    """Of a mixer on packed, padded and cached rows."""

    @staticmethod
    def documents_are_apart(part: Part) -> None:
        """A packed row equals its documents alone; padding anywhere changes nothing and is itself finite."""
        x = torch.randn(3, 11, DIM, dtype=torch.float64)
        segments = torch.tensor(
            [[1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3], [0, 0, 0, 1, 1, 2, 2, 2, 2, 0, 0], [1, 1, 0, 0, 1, 1, 2, 2, 0, 2, 2]]
        )
        y = part(x, context_of(segments, 11))
        assert y.isfinite().all()
        for row in range(3):
            for document in segments[row].unique():
                if document:
                    inside = segments[row] == document
                    alone = part(x[row, inside][None], context_of(None, int(inside.sum())))
                    torch.testing.assert_close(y[row, inside][None], alone, rtol=1e-10, atol=1e-12)

    @staticmethod
    def gradients_stay_in_their_document(part: Part) -> None:
        x = torch.randn(1, 8, DIM, dtype=torch.float64, requires_grad=True)
        segments = torch.tensor([[1, 1, 1, 2, 2, 2, 0, 0]])
        (gradient,) = torch.autograd.grad(part(x, context_of(segments, 8))[0, 3:6].square().sum(), x)
        assert gradient[0, 3:6].abs().sum(-1).min() > 0
        assert gradient[0, :3].abs().max() == 0
        assert gradient[0, 6:].abs().max() == 0

    @staticmethod
    def it_looks_back_and_never_ahead(part: Part) -> None:
        x = torch.randn(1, 9, DIM, dtype=torch.float64)
        changed = x.clone()
        changed[0, 4] += 1.0
        difference = (part(x, context_of(None, 9)) - part(changed, context_of(None, 9))).abs().sum(-1)[0]
        assert difference[:4].max() == 0
        assert difference[4:].min() > 0

    @staticmethod
    def pieces_equal_the_whole(part: Part) -> None:
        """Calls with a state, cut anywhere, left-padded, also in the middle, and going over borders of documents."""
        x = torch.randn(3, 12, DIM, dtype=torch.float64)
        segments = torch.tensor(
            [
                [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1],
                [1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3],
                [0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1],
            ]
        )
        whole = part(x, context_of(segments, 12))
        for cuts in ([5, 6, 7, 8, 9, 10, 11], [1, 2], [4], [7, 11]):
            state, pieces, start = KvCache(12), [], 0
            for end in [*cuts, 12]:
                pieces.append(part(x[:, start:end], context_of(segments[:, start:end], end - start, state)))
                start = end
            real = segments > 0
            torch.testing.assert_close(torch.cat(pieces, 1)[real], whole[real], rtol=1e-10, atol=1e-12)

    @staticmethod
    def rows_of_the_state_can_be_dropped(part: Part) -> None:
        x = torch.randn(3, 6, DIM, dtype=torch.float64)
        state = KvCache(6)
        part(x[:, :5], context_of(None, 5, state))
        state.keep([2, 0])
        last = part(x[[2, 0], 5:], context_of(None, 1, state))
        torch.testing.assert_close(last, part(x, context_of(None, 6))[[2, 0], 5:], rtol=1e-10, atol=1e-12)

    @staticmethod
    def half_precision_is_near(part: Part) -> None:
        """Autocast to bfloat16 computes, and back-propagates, about the same."""
        part = part.float()
        x = torch.randn(2, 7, DIM, requires_grad=True)
        segments = torch.tensor([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0]])
        exact = part(x, context_of(segments, 7))
        with torch.autocast("cpu", torch.bfloat16):
            near = part(x, context_of(segments, 7))
            near.float().square().sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        torch.testing.assert_close(near.float(), exact, rtol=0.1, atol=0.05 * float(exact.detach().abs().max()))

    @classmethod
    def all(cls) -> list[Callable[[Part], None]]:
        return [
            cls.documents_are_apart,
            cls.gradients_stay_in_their_document,
            cls.it_looks_back_and_never_ahead,
            cls.pieces_equal_the_whole,
            cls.rows_of_the_state_can_be_dropped,
            cls.half_precision_is_near,
        ]


@pytest.fixture(params=Laws.all(), ids=lambda law: law.__name__)
def law(request: pytest.FixtureRequest) -> Callable[[Part], None]:
    """Each of the laws in turn."""
    return request.param
