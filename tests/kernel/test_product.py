from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llmfactory.kernel.product import LARGE, one_dnn_serves, product


@pytest.fixture(autouse=True, params=[0, LARGE], ids=["one_dnn", "torch"])
def large(request, monkeypatch):
    """From which size on oneDNN is asked: always, or for none of these."""
    monkeypatch.setattr("llmfactory.kernel.product.LARGE", request.param)
    return request.param


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)]
)
@pytest.mark.parametrize("turned", ["neither", "x", "weight", "both"])
def test_it_is_the_product(turned, dtype, tolerance):
    torch.manual_seed(0)
    x, weight = torch.randn(7, 33, dtype=torch.float64), torch.randn(12, 33, dtype=torch.float64)
    want = torch.stack([weight @ row for row in x])
    x, weight = x.to(dtype), weight.to(dtype)
    if turned in ("x", "both"):
        x = x.T.contiguous().T
    if turned in ("weight", "both"):
        weight = weight.T.contiguous().T
    got = product(x, weight)
    assert got.dtype is dtype
    torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance * float(want.abs().max()))


@pytest.mark.parametrize("sizes", [(0, 9, 4), (5, 0, 4), (1, 1, 1)], ids=str)
def test_of_nothing_and_of_one_number(sizes):
    rows, outputs, inputs = sizes
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    torch.testing.assert_close(product(x, weight), x @ weight.T)


def test_rows_of_a_larger_matrix():
    x, weight = torch.randn(20, 40), torch.randn(9, 40)
    torch.testing.assert_close(product(x[3:8, 5:21], weight[2:6, 5:21]), x[3:8, 5:21] @ weight[2:6, 5:21].T)


class Given(TorchDispatchMode):
    """What oneDNN is given."""

    def __init__(self):
        super().__init__()
        self.factors = []

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        if operation is torch.ops.mkldnn._linear_pointwise.default:
            self.factors.append(given[:2])
        return operation(*given, **(named or {}))


@pytest.mark.parametrize("turned", [False, True])
def test_what_is_cut_out_of_wider_rows_is_copied_for_one_dnn(turned, large):
    """It would multiply such a matrix number by number."""
    x, wide = torch.randn(4, 16), torch.randn(16, 40)
    weight = wide[:, 5:14].T if turned else wide.reshape(20, 32)[:9, 3:19]
    with Given() as seen:
        got = product(x, weight)
    torch.testing.assert_close(got, x @ weight.T)
    assert len(seen.factors) == (large == 0 and torch.backends.mkldnn.is_available())
    for first, second in seen.factors:
        assert first.is_contiguous()
        assert second.is_contiguous() or second.T.is_contiguous()


def test_a_large_factor_that_is_turned_over():
    """Then the other factor and the result are turned over instead: the same numbers, row by row in memory."""
    torch.manual_seed(0)
    x, weight = torch.randn(64, 9).T, torch.randn(2, 64)
    got = product(x, weight)
    torch.testing.assert_close(got, x.contiguous() @ weight.T)
    assert got.is_contiguous()


def test_when_one_dnn_is_asked(monkeypatch):
    monkeypatch.setattr("llmfactory.kernel.product.LARGE", 100)
    available = torch.backends.mkldnn.is_available()
    assert one_dnn_serves(torch.zeros(1), 100) == available
    assert not one_dnn_serves(torch.zeros(1), 99)
    assert not one_dnn_serves(torch.zeros(1, dtype=torch.float64), 100)
    assert not one_dnn_serves(torch.zeros(1, device="meta"), 100)
