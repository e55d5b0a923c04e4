from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llmfactory.kernel import quantized_linear as kernel
from llmfactory.kernel.quantized_linear import BLOCK, CODE_BOOK, GROUP, int8, nf4, nf4_scales, quantized_linear, weight_of

FORMS = {"nf4": nf4, "nf4_plain": lambda weight: nf4(weight, double=False), "int8": int8}


@pytest.fixture(params=[5, 1 << 20], ids=["slabs", "whole"], autouse=True)
def _slabs(request, monkeypatch):
    """Matrices in slabs of a row, or all at once."""
    monkeypatch.setattr(kernel, "ELEMENTS", request.param)


def matrix(outputs=5, width=192, seed=0):
    return torch.randn(outputs, width, generator=torch.Generator().manual_seed(seed)) * 0.05


def plain_nf4(weight):
    """Codes and scales by the definition: the nearest number of the book, block by block."""
    book = torch.tensor(CODE_BOOK, dtype=torch.float64)
    codes, scales = [], []
    for row in weight.double():
        blocks = row.split(BLOCK)
        scales.append([block.abs().max().item() for block in blocks])
        codes.append(
            [int((book - x / (s or 1.0)).abs().argmin()) for block, s in zip(blocks, scales[-1], strict=True) for x in block]
        )
    return torch.tensor(codes), torch.tensor(scales)


@pytest.mark.parametrize("width", [192, 64, 100, 33, 1])
def test_nf4_takes_the_nearest_number_of_the_book(width):
    weight = matrix(width=width)
    weight[1, :64] = 0.0
    codes, scales = plain_nf4(weight)
    packed = nf4(weight, double=False)
    ours = torch.stack((packed[0] >> 4, packed[0] & 15), -1).flatten(1)[:, :width]
    assert torch.equal(ours.long(), codes)
    torch.testing.assert_close(packed[1], scales, rtol=0, atol=0)
    book = torch.tensor(CODE_BOOK)
    torch.testing.assert_close(weight_of(packed, width), book[codes] * scales.repeat_interleave(BLOCK, 1)[:, :width])


def test_the_book_is_of_quantiles_of_a_normal_distribution():
    """Dettmers et al. 2023, equation 4: eight below zero, zero, seven above; 8 and 9 steps from the middle to the offset."""
    offset = 0.5 * (1 - 1 / 30 + 1 - 1 / 32)
    normal = torch.distributions.Normal(0.0, 1.0)
    above = normal.icdf(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    below = -normal.icdf(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    book = torch.cat((below, torch.zeros(1), above)).sort().values
    torch.testing.assert_close(book / book.max(), torch.tensor(CODE_BOOK, dtype=torch.float64), rtol=0, atol=2e-7)


def test_scales_in_eight_bits():
    weight = matrix(40, 64 * 20)  # 800 scales: three groups and a part of a fourth
    plain, double = nf4(weight, double=False), nf4(weight)
    assert torch.equal(plain[0], double[0])
    assert [*map(len, double[1:])] == [40, 4]
    assert double[1].dtype is torch.uint8
    exact, ours = plain[1].flatten(), nf4_scales(double).flatten()
    for start in range(0, 800, GROUP):
        group = exact[start : start + GROUP]
        away = (ours - exact)[start : start + GROUP].abs().max()
        assert away <= (group - group.mean()).abs().max() / 16 * 1.01  # three bits of mantissa
    assert not torch.equal(ours, exact)
    equal = nf4(torch.full((2, 128), 0.3))
    torch.testing.assert_close(weight_of(equal, 128), torch.full((2, 128), 0.3))


def test_int8_is_row_by_row():
    weight = matrix()
    weight[2] = 0.0
    codes, scales = int8(weight)
    assert torch.equal(codes[3], (weight[3] / weight[3].abs().max() * 127).round().to(torch.int8))
    assert (weight_of((codes, scales), 192) - weight).abs().max() <= scales.max() / 2 * 1.001
    assert codes.abs().max() == 127


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_product_and_gradient_are_those_of_the_matrix(form, dtype):
    packed = FORMS[form](matrix(7, 100))
    weight = weight_of(packed, 100, dtype)
    x = torch.randn(2, 3, 100, dtype=dtype, requires_grad=True)
    y, want = quantized_linear(x, packed), F.linear(x, weight)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype is not torch.bfloat16 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(y, want, **tolerance)
    towards = torch.randn_like(want)
    torch.testing.assert_close(*(torch.autograd.grad(one, x, towards, retain_graph=True)[0] for one in (y, want)), **tolerance)


@pytest.mark.parametrize(("form", "most"), [("nf4", 0.53), ("nf4_plain", 0.57), ("int8", 1.01)])
def test_bytes(form, most):
    packed = FORMS[form](matrix(64, 1024))
    assert sum(t.numel() * t.element_size() for t in packed) / (64 * 1024) <= most


def test_what_the_backward_pass_keeps_is_the_packed_matrix():
    packed, kept = nf4(matrix(64, 256)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        quantized_linear(torch.randn(3, 256, requires_grad=True), packed)
    assert [t.data_ptr() for t in kept] == [t.data_ptr() for t in packed]


def test_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert quantized_linear(torch.randn(2, 192), nf4(matrix())).dtype is torch.bfloat16


def test_no_rows():
    assert quantized_linear(torch.zeros(0, 192), nf4(matrix())).shape == (0, 5)
