"""Cross-entropy in Triton (kernel/cross_entropy.py, kernel/tile/cross_entropy.py), and the fused head that uses it."""

from __future__ import annotations

import pytest
import torch
from twice import DEVICES, FORMATS, agree, random

from llmfactory.core.batch import IGNORE
from llmfactory.core.kernel import Kernel
from llmfactory.kernel.cross_entropy import cross_entropy, plain
from llmfactory.kernel.linear_cross_entropy import linear_cross_entropy

OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"softcap": 2.0},
    {"z": 0.05},
    {"label_smoothing": 0.2, "softcap": 3.0, "z": 0.01},
]


def labels(n: int, vocab: int, device: str) -> torch.Tensor:
    """Both ends of the vocabulary among them, and one that is ignored."""
    found = torch.arange(n, device=device) * 7 % vocab
    found[n // 2] = vocab - 1
    found[n // 3] = IGNORE
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_option(options: dict[str, float], dtype: torch.dtype, device: str) -> None:
    x = 3 * random(7, 129, dtype=dtype, device=device)
    agree(lambda x, kernel: cross_entropy(x, labels(7, 129, device), kernel=kernel, **options), [x])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (2, 4097)])
def test_shapes(shape: tuple[int, int], device: str) -> None:
    """Of 4,097 logits, the last one is in a block of its own, and the largest."""
    x = random(*shape, dtype=torch.float64, device=device)
    x[:, -1] += 9.0
    places = (
        torch.arange(shape[0], device=device) + shape[1] - shape[0] if shape[1] > shape[0] else torch.zeros(1, dtype=torch.int64)
    )
    agree(lambda x, kernel: cross_entropy(x, places.to(device), label_smoothing=0.1, kernel=kernel), [x])


@pytest.mark.parametrize("device", DEVICES)
def test_logits_apart_in_memory(device: str) -> None:
    """Rows of a wider tensor, and every other column of one."""
    x = random(3, 17, dtype=torch.float64, device=device)
    own = labels(3, 17, device)
    agree(lambda x, kernel: cross_entropy(torch.cat((x, -x), 1)[:, :17], own, z=0.1, kernel=kernel), [x])
    agree(lambda x, kernel: cross_entropy(torch.stack((x, -x), -1)[..., 0], own, z=0.1, kernel=kernel), [x])


@pytest.mark.parametrize("device", DEVICES)
def test_no_rows_and_nothing_but_ignored(device: str) -> None:
    nobody = torch.zeros(0, dtype=torch.int64, device=device)
    agree(lambda x, kernel: cross_entropy(x, nobody, kernel=kernel), [random(0, 5, dtype=torch.float64, device=device)])
    x = random(2, 5, dtype=torch.float64, device=device)
    ignored = torch.full((2,), IGNORE, device=device)
    agree(lambda x, kernel: cross_entropy(x, ignored, kernel=kernel), [x])


@pytest.mark.parametrize("device", DEVICES)
def test_large_logits_do_not_overflow(device: str) -> None:
    x = torch.tensor([[1e4, -1e4, 9e3], [-1e30, 0.0, -1e30]], dtype=torch.float64, device=device)
    agree(lambda x, kernel: cross_entropy(x, torch.tensor([2, 1], device=device), kernel=kernel), [x])


@pytest.mark.parametrize("device", DEVICES)
def test_whoever_kept_the_logits_for_a_gradient_is_told(device: str) -> None:
    x = random(2, 5, dtype=torch.float32, device=device).requires_grad_()
    logits = x.exp()  # whose gradient needs them
    loss = cross_entropy(logits, torch.zeros(2, dtype=torch.int64, device=device), kernel=Kernel.triton).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_plain_one_is_pytorch_s() -> None:
    x = random(7, 13, dtype=torch.float64, device="cpu")
    theirs = torch.nn.functional.cross_entropy(
        x, labels(7, 13, "cpu"), label_smoothing=0.1, reduction="none", ignore_index=IGNORE
    )
    torch.testing.assert_close(plain(x, labels(7, 13, "cpu"), label_smoothing=0.1), theirs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FORMATS)
def test_the_fused_head(dtype: torch.dtype, device: str) -> None:
    """In chunks of rows, with weights, a bias, smoothing and a cap."""
    hidden, weight, bias = (random(*s, dtype=dtype, device=device) for s in ((7, 6), (17, 6), (17,)))
    weights = random(7, dtype=torch.float64, device=device).abs()

    def loss(hidden, weight, bias, kernel):
        return linear_cross_entropy(
            hidden,
            weight,
            labels(7, 17, device),
            bias_V=bias,
            weights=weights,
            label_smoothing=0.1,
            softcap=4.0,
            z=0.05,
            chunk_rows=3,
            kernel=kernel,
        )

    agree(loss, [hidden, weight, bias])
    hidden, weight = (random(*s, dtype=dtype, device=device, strided=True) for s in ((7, 6), (17, 6)))
    agree(lambda h, w, kernel: linear_cross_entropy(h, w, labels(7, 17, device), chunk_rows=4, kernel=kernel), [hidden, weight])


@pytest.mark.parametrize("device", DEVICES)
def test_the_fused_head_without_tokens(device: str) -> None:
    hidden, weight = (random(*s, dtype=torch.float64, device=device) for s in ((0, 6), (17, 6)))
    nobody = torch.zeros(0, dtype=torch.int64, device=device)
    agree(lambda h, w, kernel: linear_cross_entropy(h, w, nobody, kernel=kernel), [hidden, weight])
