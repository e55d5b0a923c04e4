"""What all kernels in Triton have in common: how they round what they store."""

from __future__ import annotations

import pytest
import torch
from twice import DEVICES


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_numbers_are_stored_as_the_nearest_ones(dtype: torch.dtype, device: str) -> None:
    """Ties to even, as PyTorch rounds; half of a last digit that is cut off each time would add up."""
    import triton
    import triton.language as tl

    from llmfactory.kernel.tile.launch import rounded

    @triton.jit
    def copy(x_ptr, y_ptr, n, rounded: tl.constexpr, BLOCK: tl.constexpr):
        places = tl.arange(0, BLOCK)
        tl.store(y_ptr + places, rounded(tl.load(x_ptr + places, mask=places < n), y_ptr.dtype.element_ty), mask=places < n)

    special = [0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 65504.0, float("inf"), -float("inf"), float("nan")]
    x = torch.cat([torch.randn(2000, generator=torch.Generator().manual_seed(0)), torch.tensor(special)]).to(device)
    found = torch.empty(len(x), dtype=dtype, device=device)
    copy[(1,)](x, found, len(x), rounded, BLOCK=2048)
    torch.testing.assert_close(found, x.to(dtype), rtol=0, atol=0, equal_nan=True)
