"""AdamW in 8 bits against a plain form of the paper's step, against torchao's, and the bytes it takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmfactory.core.errors import ConfigError
from llmfactory.optim.dynamic_code import table
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Adamw, Adamw8bit


def gradients(*shape: int, steps: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) * scale for scale in (1.0, 0.1, 5.0, 1e-3)[:steps]]


def run(spec: Adamw | Adamw8bit, start: Tensor, given: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    weight = start.clone().requires_grad_()
    optimizer = spec.build([{"params": [weight], "weight_decay": 0.1}])
    for gradient in given:
        weight.grad = gradient.to(start.dtype)
        optimizer.step()
    return weight.detach(), optimizer.state[weight]


def rounded(values: Tensor, block: int, signed: bool) -> Tensor:
    """By a search through the table, row by row, block by block."""
    found, known = torch.empty_like(values), table(signed).to(values.dtype)
    for row in range(values.shape[0]):
        for start in range(0, values.shape[1], block):
            some = values[row, start : start + block]
            scale = some.abs().max()
            codes = (some[:, None] / scale - known).abs().argmin(1)
            codes = codes if signed else torch.where(some > 0, codes.clamp_min(1), codes)
            found[row, start : start + block] = known[codes] * scale
    return found


@pytest.mark.parametrize("block", [8, 7, 64])
def test_equals_the_paper(block: int) -> None:
    spec = Adamw8bit(lr=0.01, schedule=Constant(), block_size=block, least_size=0, betas=[0.8, 0.9], eps=1e-6)
    start, given = torch.linspace(-1, 1, 60).view(3, 20), gradients(3, 20)
    w, m, v = start.clone(), torch.zeros(3, 20), torch.zeros(3, 20)
    for step, g in enumerate(given, start=1):
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        w = w - 0.01 * 0.1 * w - 0.01 * (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-6)
        m, v = rounded(m, block, True), rounded(v, block, False)
    torch.testing.assert_close(run(spec, start, given)[0], w, rtol=1e-5, atol=1e-6)


def test_equals_torchao() -> None:
    """Where rows are whole blocks, and no square is so small that torchao's becomes zero."""
    from torchao.optim import AdamW8bit as Theirs

    start = torch.linspace(-1, 1, 16 * 256).view(8, 512)
    given = [g.sign() * (g.abs() + 0.01) for g in gradients(8, 512)]
    weight = start.clone().requires_grad_()
    theirs = Theirs([weight], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, block_size=256)
    with torch.compiler.set_stance("force_eager"):
        for gradient in given:
            weight.grad = gradient.clone()
            theirs.step()
    ours, _ = run(Adamw8bit(lr=1e-2, schedule=Constant()), start, given)
    torch.testing.assert_close(ours, weight.detach(), rtol=1e-5, atol=1e-6)


def test_rows_are_done_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    start, given = torch.linspace(-1, 1, 1000).view(20, 50), gradients(20, 50)
    spec = Adamw8bit(lr=0.01, schedule=Constant(), block_size=16, least_size=0)
    whole, _ = run(spec, start, given)
    monkeypatch.setattr("llmfactory.optim.adamw8bit.AT_ONCE", 130)
    assert torch.equal(run(spec, start, given)[0], whole)


def test_vectors_and_small_matrices_are_adamw_s() -> None:
    for shape in ((60,), (6, 10)):
        start, given = torch.linspace(-1, 1, 60).view(shape), gradients(*shape)
        ours, state = run(Adamw8bit(lr=0.01, schedule=Constant()), start, given)
        torch.testing.assert_close(ours, run(Adamw(lr=0.01, schedule=Constant()), start, given)[0])
        assert state["mean"].dtype == torch.float32


def test_it_comes_near_adamw() -> None:
    start, given = torch.zeros(16, 256), gradients(16, 256)
    ours, _ = run(Adamw8bit(lr=0.01, schedule=Constant()), start, given)
    full, _ = run(Adamw(lr=0.01, schedule=Constant()), start, given)
    assert 0 < (ours - full).norm() < 0.03 * full.norm()


def test_an_element_that_rests_does_not_jump() -> None:
    """Its square is far below the block's largest one, and its mean is not: a square rounded to zero would leave m / eps."""
    first, nothing = torch.ones(1, 256), torch.zeros(1, 256)
    first[0, 1] = 1e-4
    start = torch.zeros(1, 256)
    ours, _ = run(Adamw8bit(lr=1e-3, schedule=Constant(), least_size=0), start, [first, nothing, nothing])
    assert ours.abs().max() < 3e-3


@pytest.mark.parametrize("width", [torch.float32, torch.bfloat16, torch.float64])
def test_two_bytes_and_a_share_of_a_scale_for_each_weight(width: torch.dtype) -> None:
    start = torch.zeros(64, 512, dtype=width)
    spec = Adamw8bit(lr=0.01, schedule=Constant())
    weight, state = run(spec, start, gradients(64, 512, steps=1))
    assert weight.dtype == width
    measured = sum(value.nbytes for value in state.values() if value.dim())
    assert measured == start.numel() * spec.state_bytes(start.element_size())
    assert measured < 2.04 * start.numel()


def test_a_block_has_several_numbers() -> None:
    with pytest.raises(ConfigError, match="block_size"):
        Adamw8bit(lr=0.1, schedule=Constant(), block_size=1)
