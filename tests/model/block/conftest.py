"""A block of known sub-layers beside its equation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from llmfactory.core.context import CausalMask, Context
from llmfactory.core.sharding import Parameter
from llmfactory.model.block.spec import BlockSpec
from llmfactory.model.part import Part

DIM = 6


class Bent(Part):
    """A sub-layer that mixes coordinates and is not linear, different for each seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(DIM, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))

    def declare(self) -> dict[str, Parameter]:
        return {}

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        return (x_BTD @ self.weight).tanh() + 0.3 * x_BTD


def block_of(spec: BlockSpec, site: Callable, cross: bool, dropout: float = 0.0) -> nn.Module:
    """A block around three different sub-layers, its norms with gains and biases of their own."""
    parts = [Bent(1), Bent(2), Bent(3) if cross else None]
    block = spec.build(site(dim=DIM, n_layers=5), *parts, dropout).double()
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if "norm" in name:
                parameter.add_(0.5 * torch.randn(parameter.shape, dtype=torch.float64))
    return block


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(7), requires_grad=True)


CONTEXT = Context(torch.arange(4)[None], CausalMask(4))


@pytest.fixture
def check_wiring(site: Callable) -> Callable:
    """A wiring gives the values of `equation(block, x, attention, ffn, cross)` and their gradients."""

    def check(spec: BlockSpec, equation: Callable, crosses: tuple[bool, ...] = (False, True)) -> None:
        for cross in crosses:
            block, x = block_of(spec, site, cross), rows(2, 4)
            parts = [partial(part, context=CONTEXT) for part in (block.attention, block.ffn)]
            parts.append(partial(block.cross, context=CONTEXT) if cross else None)
            got, want = block(x, CONTEXT), equation(block, x, *parts)
            torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
            weight = torch.randn(got.shape, dtype=torch.float64)
            leaves = [x, *block.parameters()]
            sides = [torch.autograd.grad((side * weight).sum(), leaves) for side in (got, want)]
            for ours, theirs in zip(*sides, strict=True):
                assert theirs.abs().sum() > 0, "every weight has a say"
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
            assert torch.autograd.gradcheck(partial(block, context=CONTEXT), rows(1, 2))

    return check


@pytest.fixture
def check_dropout(site: Callable) -> Callable:
    """In training, each of the sub-layers is dropped by itself, element by element; in evaluation none is."""

    def check(spec: BlockSpec, branches: int) -> None:
        cross = branches == 3
        block, x = block_of(spec, site, cross, dropout=0.5), rows(3, 4)
        whole = block_of(spec, site, cross)
        whole.load_state_dict(block.state_dict())
        block.eval()
        torch.testing.assert_close(block(x, CONTEXT), whole(x, CONTEXT), rtol=0, atol=0)
        block.train()
        drops = []
        block.dropout.register_forward_hook(lambda module, inputs, output: drops.append((inputs[0], output)))
        block(x, CONTEXT)
        assert len(drops) == branches
        for before, after in drops:
            kept = after != 0
            assert 0.2 < kept.double().mean() < 0.8
            torch.testing.assert_close(after[kept], 2 * before[kept])
        with torch.no_grad():  # what is dropped does not reach the result
            block.dropout.p = 1.0
            empty = block_of(spec, site, cross)
            empty.load_state_dict(block.state_dict())
            for name in ("attention", "cross", "ffn") if cross else ("attention", "ffn"):
                getattr(empty, name).register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
            for name, norm in empty.named_children():
                if name.endswith("out_norm") and norm is not None:
                    norm.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
            torch.testing.assert_close(block(x, CONTEXT), empty(x, CONTEXT), rtol=0, atol=0)

    return check
