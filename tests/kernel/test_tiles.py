"""Matrix products by tiles in Triton: the first lesson (kernel/tile/matmul.py), of groups (grouped.py, and the permutation around
them), of matrices in few bits (quantized.py)."""

from __future__ import annotations

import pytest
import torch
from twice import DEVICES, FORMATS, agree, random

from llmfactory.core.kernel import Kernel, interpreted
from llmfactory.kernel.grouped_linear import grouped_linear
from llmfactory.kernel.permutation import back_to_tokens, to_experts
from llmfactory.kernel.quantized_linear import int8, nf4, quantized_linear, weight_of


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("n", "outputs", "inner"), [(1, 1, 1), (17, 65, 3), (0, 4, 4), (3, 17, 0)])
def test_the_first_lesson(n: int, outputs: int, inner: int, dtype: torch.dtype, device: str) -> None:
    from llmfactory.kernel.tile.matmul import product

    agree_without_gradient(product, n, outputs, inner, dtype, device)


def agree_without_gradient(product, n: int, outputs: int, inner: int, dtype: torch.dtype, device: str) -> None:
    """Contiguous factors and transposed ones."""
    if dtype is torch.float64 and device == "cuda":
        pytest.skip("tiles of float64 are for the interpreter")
    a, b = random(n, inner, dtype=dtype, device=device), random(outputs, inner, dtype=dtype, device=device)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for one, other in ((a, b), (a.t().contiguous().t(), b.t().contiguous().t())):
        expected = one.double() @ other.double().t()
        torch.testing.assert_close(product(one, other).double(), expected, rtol=tolerance, atol=10 * tolerance)


def test_every_tile_is_made_once() -> None:
    """The order of programs, in plain numbers."""
    if not interpreted():
        pytest.skip("the interpreter runs it as Python")
    from llmfactory.kernel.tile.matmul import BAND

    def place(program: int, row_tiles: int, column_tiles: int) -> tuple[int, int]:
        band = program // (BAND * column_tiles)
        height = min(row_tiles - band * BAND, BAND)
        within = program % (BAND * column_tiles)
        return band * BAND + within % height, within // height

    for rows, columns in ((1, 1), (3, 5), (17, 2), (8, 8)):
        assert {place(p, rows, columns) for p in range(rows * columns)} == {(r, c) for r in range(rows) for c in range(columns)}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FORMATS[1:])
def test_groups_of_rows(dtype: torch.dtype, device: str) -> None:
    """An empty group first, in the middle and last; one that fills its tiles, and one row."""
    ends = torch.tensor([0, 16, 16, 37, 38, 38], dtype=torch.int32, device=device)
    x, weight = random(38, 9, dtype=dtype, device=device), random(6, 17, 9, dtype=dtype, device=device)
    agree(lambda x, w, kernel: grouped_linear(x, w, ends, kernel), [x, weight])


@pytest.mark.parametrize("device", DEVICES)
def test_apart_in_memory(device: str) -> None:
    """Rows and matrices that are parts of wider ones."""
    x, weight = (random(*shape, dtype=torch.float32, device=device, strided=True) for shape in ((5, 9), (2, 17, 9)))
    ends = torch.tensor([2, 5], dtype=torch.int32, device=device)
    agree(lambda x, w, kernel: grouped_linear(x, w, ends, kernel), [x, weight])
    order = torch.tensor([3, 0, 9, 1, 2, 8, 7, 4, 6, 5], device=device)
    agree(lambda x, kernel: to_experts(x, order, 2, kernel), [x])
    agree(lambda x, kernel: back_to_tokens(x, torch.tensor([3, 0, 4, 1, 2], device=device), kernel), [x])
    packed = int8(random(17, 9, dtype=torch.float32, device=device))

    def product(x, kernel):
        return quantized_linear(x, packed, kernel) if kernel is Kernel.triton else x @ weight_of(packed, 9).double().t()

    agree(product, [x])


@pytest.mark.parametrize("device", DEVICES)
def test_no_rows_at_all(device: str) -> None:
    ends = torch.zeros(3, dtype=torch.int32, device=device)
    agree(
        lambda x, w, kernel: grouped_linear(x, w, ends, kernel),
        [random(0, 9, dtype=torch.float32, device=device), random(3, 17, 9, dtype=torch.float32, device=device)],
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("tokens", "k", "dim"), [(1, 1, 1), (5, 2, 17), (3, 3, 65), (0, 2, 4)])
def test_the_permutation(tokens: int, k: int, dim: int, dtype: torch.dtype, device: str) -> None:
    order = torch.randperm(tokens * k, generator=torch.Generator().manual_seed(1)).to(device)
    x = random(tokens, dim, dtype=dtype, device=device)
    agree(lambda x, kernel: to_experts(x, order, k, kernel), [x])
    agree(lambda x, kernel: back_to_tokens(x.repeat_interleave(k, 0) * 2, order, kernel), [x])
    there = to_experts(x, order, k, Kernel.triton)
    torch.testing.assert_close(back_to_tokens(there, order, Kernel.triton), x.repeat_interleave(k, 0), rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FORMATS[1:])
@pytest.mark.parametrize("bits", ["nf4", "nf4, scales in full", "int8"])
def test_few_bits(bits: str, dtype: torch.dtype, device: str) -> None:
    """A last block that is short."""
    weight = random(17, 130, dtype=torch.float32, device=device)
    packed = int8(weight) if bits == "int8" else nf4(weight, double=bits == "nf4")

    def product(x, kernel):
        if kernel is Kernel.triton:
            return quantized_linear(x, packed, kernel)
        return x @ weight_of(packed, 130, dtype).double().t()

    for n in (1, 5, 0):
        agree(product, [random(n, 130, dtype=dtype, device=device)])
