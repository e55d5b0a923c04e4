"""The blocked scan against the recurrence token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmfactory.kernel.selective_scan import reference, selective_scan

B, T, D, N = 2, 11, 3, 4


def inputs(dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    steps, rates = torch.nn.functional.softplus(normal(B, T, D)), -normal(D, N).exp()
    steps[1, 4] = 0.0
    keep = torch.ones(B, T, dtype=dtype)
    keep[0, [3, 8]] = 0.0
    keep[1, 0] = 0.0
    return [normal(B, T, D), steps, rates, normal(B, T, N), normal(B, T, N)], keep, normal(B, D, N)


@pytest.mark.parametrize("block", [1, 4, 11, 64, None])
def test_equals_the_recurrence_with_all_gradients(block: int | None) -> None:
    tensors, keep, state = inputs()
    leaves = [tensor.requires_grad_() for tensor in (*tensors, state)]
    weights = [torch.randn(B, T, D, dtype=torch.float64), torch.randn(B, D, N, dtype=torch.float64)]
    found = []
    for outputs in (reference(*tensors, keep, state), selective_scan(*tensors, keep, state, block=block)):
        total = sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True))
        found.append([*outputs, *torch.autograd.grad(total, leaves)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_strided_rows_in_single_precision() -> None:
    """As halves of a wider tensor come, tokens before rows in memory; against the recurrence in float64."""
    tensors, keep, state = inputs()
    strided = [torch.stack((x, x), -1).transpose(0, 1).contiguous().transpose(0, 1)[..., 0].float() for x in tensors[:2]]
    strided = [torch.cat((x, x), -1)[..., :D] for x in strided]
    assert not any(x.is_contiguous() for x in strided)
    single = [x.requires_grad_() for x in (*strided, *(x.float() for x in tensors[2:]))]
    double = [x.requires_grad_() for x in tensors]
    found = []
    for outputs, leaves in (
        (selective_scan(*single, keep.float(), state.float(), block=4), single),
        (reference(*double, keep, state), double),
    ):
        y, after = outputs
        found.append([y, after, *torch.autograd.grad(y.sin().sum() + after.square().sum(), leaves)])
    for ours, exact in zip(*found, strict=True):
        assert ours.dtype is torch.float32
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5)


def test_without_state_and_borders() -> None:
    tensors, _, _ = inputs()
    for ours, theirs in zip(selective_scan(*tensors, block=3), reference(*tensors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_a_step_of_zero_passes_over_a_token() -> None:
    (u, delta, a, b, c), _, state = inputs()
    delta = delta.detach().clone()
    delta[:, 5:] = 0.0
    _, after = selective_scan(u, delta, a, b, c, None, state, block=4)
    _, at_five = selective_scan(u[:, :5], delta[:, :5], a, b[:, :5], c[:, :5], None, state, block=4)
    torch.testing.assert_close(after, at_five, rtol=0, atol=0)


def test_its_inputs_stay_as_they_are() -> None:
    tensors, keep, state = inputs()
    before = [tensor.clone() for tensor in (*tensors, keep, state)]
    selective_scan(*tensors, keep, state, block=2)
    assert all(torch.equal(old, new) for old, new in zip(before, (*tensors, keep, state), strict=True))
