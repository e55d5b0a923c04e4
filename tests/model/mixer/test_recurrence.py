"""Rows cut into runs."""

from __future__ import annotations

import pytest
import torch

from llmfactory.core.context import CausalMask, Context, DocumentMask
from llmfactory.model.mixer.documents import documents
from llmfactory.model.mixer.recurrence import runs
from llmfactory.model.mixer.spec import Gru, Lstm, MixerSpec, Rnn


def test_runs_of_packed_and_padded_rows() -> None:
    segments = torch.tensor([[1, 1, 2, 2, 2], [0, 3, 3, 3, 3], [0, 0, 0, 0, 0]])
    context = Context(segments, DocumentMask(segments), segments=segments)
    cut = runs(documents(segments, context, torch.tensor([1, 2, 2])))
    assert cut.sizes.tolist() == [3, 3, 2, 1]
    assert cut.row_P.tolist() == [1, 0, 0]  # four, three and two tokens long
    assert cut.token_N.tolist() == [6, 2, 0, 7, 3, 1, 8, 4, 9]
    assert cut.continues_P.tolist() == [False, False, True]
    assert cut.last_B.tolist() == [1, 0, -1]


def test_nothing_but_padding() -> None:
    segments = torch.zeros(2, 3, dtype=torch.int64)
    cut = runs(documents(segments, Context(segments, DocumentMask(segments), segments=segments)))
    assert len(cut.token_N) == 0
    assert cut.last_B.tolist() == [-1, -1]


@pytest.mark.parametrize("spec", [Gru(), Lstm(), Rnn()], ids=lambda spec: type(spec).__name__)
def test_gradients_over_many_steps_under_autocast(mixer, spec: MixerSpec) -> None:
    """One for each of 600 steps, added up: in bfloat16 the sum would stand still after some hundreds."""
    part = mixer(spec).float()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.mul_(0.1)
    x, context = (
        torch.rand(2, 600, 16, generator=torch.Generator().manual_seed(0)),
        Context(torch.arange(600)[None], CausalMask(600)),
    )

    def gradient(autocast: bool) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = part(x, context)
        return torch.autograd.grad(y.float().sum(), part.h.weight)[0]

    exact = gradient(False)
    assert (gradient(True) - exact).norm() < 0.02 * exact.norm()
