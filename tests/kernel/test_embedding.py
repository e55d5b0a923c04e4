"""Rows of a table: torch's own, but for how the gradient of a narrow table is added up."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfactory.kernel.embedding import embedding


def gradient(look_up: object, weight: Tensor, ids: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    leaf = nn.Parameter(weight.clone())
    leaf.grad_dtype = torch.promote_types(weight.dtype, torch.float32)
    y = look_up(ids, leaf)  # type: ignore[operator]
    y.backward(dy.to(y.dtype))
    assert leaf.grad is not None
    return y.detach(), leaf.grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 5), (0,), (), (2, 1, 4)])
def test_equals_torch_s_in_float64(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    random = torch.Generator().manual_seed(0)
    weight, ids = torch.randn(7, 6, generator=random).to(dtype), torch.randint(7, shape, generator=random)
    dy = torch.randn(*shape, 6, generator=random).to(dtype)
    y, found = gradient(embedding, weight, ids, dy)
    right_y, right = gradient(F.embedding, weight.double(), ids, dy.double())
    assert y.equal(right_y.to(dtype))
    torch.testing.assert_close(found.double(), right, rtol=1e-6, atol=1e-6)


def test_a_row_that_is_looked_up_often() -> None:
    """4096 gradients of 1: added up in bfloat16 they would stand still at 256."""
    ids, weight = torch.zeros(4, 1024, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.bfloat16)
    _, found = gradient(embedding, weight, ids, torch.ones(4, 1024, 3).transpose(0, 1).contiguous().transpose(0, 1))
    assert found.tolist() == [[4096.0] * 3, [0.0] * 3]
