"""Codes of 8 bits against a plain search for the nearest number, and the table against torchao's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmfactory.optim.dynamic_code import Blocks, decode, encode, largest, table


def nearest(x: Tensor, values: Tensor) -> Tensor:
    return (x[..., None] - values).abs().argmin(-1)


@pytest.mark.parametrize("signed", [True, False])
def test_the_table_is_torchao_s(signed: bool) -> None:
    from torchao.optim.quant_utils import create_dynamic_map

    torch.testing.assert_close(table(signed), torch.tensor(create_dynamic_map(signed=signed)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("shape", "offset"), [((5, 32), 0), ((5, 32), 16), ((4, 37), 0), ((2, 3, 21), 11), ((1, 1), 7)])
def test_each_number_gets_the_nearest_of_its_block(signed: bool, shape: tuple[int, ...], offset: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) ** 5
    x = x if signed else x.abs()
    scales = largest(x, 16, offset)
    codes = encode(x, scales, 16, offset, signed)
    assert codes.dtype == torch.uint8
    back = decode(codes, scales, 16, offset, signed)
    for column in range(shape[-1]):
        same = [other for other in range(shape[-1]) if (other + offset) // 16 == (column + offset) // 16]
        scale = x[..., same].abs().amax(-1)
        expected = nearest((x[..., column] / scale).double(), table(signed).double())
        if not signed:
            expected = expected.clamp_min(1)
        assert torch.equal(codes[..., column].long(), expected)
        torch.testing.assert_close(back[..., column], table(signed)[expected] * scale)


def test_every_bucket_of_bits_is_decided_right() -> None:
    """Also numbers on either side of each middle, where the nearest one changes."""
    for signed in (True, False):
        values = table(signed)
        middles = (values[1:] + values[:-1]) / 2
        x = torch.cat([middles, middles.nextafter(middles.new_tensor(2.0)), middles.nextafter(middles.new_tensor(-2.0)), values])
        x = x if signed else x.abs()
        expected = torch.bucketize(x, middles, right=True)
        found = encode(x[None], torch.ones(1, 1), x.numel(), 0, signed)[0].long()
        assert torch.equal(found, expected if signed else torch.where(x > 0, expected.clamp_min(1), expected))


def test_zeros_stay_zeros_and_squares_never_become_zero() -> None:
    nothing = torch.zeros(2, 8)
    for signed in (True, False):
        assert not decode(encode(nothing, largest(nothing, 4, 0), 4, 0, signed), torch.zeros(2, 2), 4, 0, signed).any()
    small = torch.tensor([[1.0, 1e-30]])
    assert decode(encode(small, torch.ones(1, 1), 2, 0, False), torch.ones(1, 1), 2, 0, False)[0, 1] > 0
    assert decode(encode(small, torch.ones(1, 1), 2, 0, True), torch.ones(1, 1), 2, 0, True)[0, 1] == 0


def test_blocks_of_a_whole_weight() -> None:
    weight = torch.arange(24.0).view(2, 3, 4)
    blocks = Blocks(weight, 3)
    assert blocks.shape == (2, 3, 2)
    (scales,) = blocks.scales([weight.view(6, 4)])
    assert torch.equal(scales, torch.stack([weight.view(6, 4)[:, 2], weight.view(6, 4)[:, 3]], 1))
    assert blocks.laid_out(scales) is scales
