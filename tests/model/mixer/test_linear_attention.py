"""Linear attention: the chunked form against the recurrence and against the quadratic form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmfactory.core.context import CausalMask, Context, DocumentMask
from llmfactory.core.errors import ConfigError
from llmfactory.model.mixer.documents import documents
from llmfactory.model.mixer.linear_attention import attend
from llmfactory.model.mixer.spec import LinearAttention


def recurrence(q_TD: Tensor, k_TD: Tensor, v_TD: Tensor, eps: float) -> Tensor:
    """Equations 10 to 12 of the paper, for one head of one document."""
    D = q_TD.shape[-1]
    S_DD, z_D, outputs = q_TD.new_zeros(D, D), q_TD.new_zeros(D), []
    for q, k, v in zip(q_TD, k_TD, v_TD, strict=True):
        S_DD, z_D = S_DD + torch.outer(k, v), z_D + k
        outputs.append(q @ S_DD / (q @ z_D + eps))
    return torch.stack(outputs)


@pytest.mark.parametrize("chunk", [1, 3, 8, 64])
def test_chunks_equal_the_recurrence(chunk: int) -> None:
    q, k = (torch.rand(2, 3, 10, 4, dtype=torch.float64) for _ in range(2))
    v = torch.randn(2, 3, 10, 4, dtype=torch.float64)
    segments = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 2, 3, 3], [0, 0, 1, 1, 1, 1, 2, 0, 0, 0]])
    found = documents(segments, Context(segments, DocumentMask(segments), segments=segments))
    y, _ = attend(q, k, v, found, 1e-6, chunk=chunk)
    for row in range(2):
        for document in (1, 2, 3):
            inside = segments[row] == document
            for head in range(3):
                if inside.any():
                    expected = recurrence(*(x[row, head, inside] for x in (q, k, v)), 1e-6)
                    torch.testing.assert_close(y[row, head, inside], expected, rtol=1e-10, atol=1e-12)


def test_equals_the_quadratic_form(mixer) -> None:
    part = mixer(LinearAttention(n_heads=2, bias=True))
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    q, k, v = (F.linear(x[0], linear.weight, linear.bias).view(9, 2, 8).transpose(0, 1) for linear in (part.q, part.k, part.v))
    scores = ((F.elu(q) + 1) @ (F.elu(k) + 1).transpose(-1, -2)).tril()
    y = (scores / (scores.sum(-1, keepdim=True) + 1e-6)) @ v
    expected = part.o(y.transpose(0, 1).flatten(1))
    torch.testing.assert_close(part(x, Context(torch.arange(9)[None], CausalMask(9)))[0], expected, rtol=1e-10, atol=1e-12)


def test_laws(mixer, law) -> None:
    law(mixer(LinearAttention(n_heads=4)))


def test_heads_divide_the_width() -> None:
    assert [problem.repair for problem in LinearAttention(n_heads=5).problems_at_width(16)] == ["n_heads=4"]
    with pytest.raises(ConfigError):
        LinearAttention(n_heads=0)
