"""Each collective operation against its definition, and its backward pass as the transpose: sum over processes of <A x, y> is that
of <x, A' y>, for any x and y."""

from __future__ import annotations

import os
from collections.abc import Callable

import pool
import pytest
import torch
from torch import Tensor

WORLD = 3
Case = tuple[Callable[[Tensor], Tensor], tuple[int, ...]]


def cases(rank: int) -> dict[str, Case]:
    import torch.distributed as dist

    from llmfactory.parallel import collectives as c

    group = dist.group.WORLD
    assert group is not None
    sent = [[1, 0, 2], [0, 3, 1], [2, 1, 0]]
    rows = sum(sent[rank])
    received = [sent[other][rank] for other in range(WORLD)]
    return {
        "total": (lambda x: c.total(x, group), (2, 3)),
        "gather": (lambda x: c.gather(x, -1, group), (2, 3)),
        "scatter_total": (lambda x: c.scatter_total(x, 1, group), (2, 6, 2)),
        "exchange": (lambda x: c.exchange(x, 1, 2, group), (2, 6, 4)),
        "exchange_rows": (lambda x: c.exchange_rows(x, sent[rank], received, group), (rows, 2)),
        "shift": (lambda x: c.shift(x, group), (2, 3)),
        "piece": (lambda x: c.piece(x, 1, group), (2, 6)),
    }


def run() -> dict[str, tuple[Tensor, Tensor, float, float]]:
    """By name: input, output, <A x, y>, <x, A' y>."""
    rank = int(os.environ["RANK"])
    found = {}
    for number, (name, (operation, shape)) in enumerate(cases(rank).items()):
        generator = torch.Generator().manual_seed(100 * number + rank)
        x = torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
        y = operation(x)
        weights = torch.randn(y.shape, dtype=torch.float64, generator=generator)
        (gradient,) = torch.autograd.grad(y, x, weights)
        found[name] = x.detach(), y.detach(), float((y * weights).sum().detach()), float((x * gradient).sum().detach())
    return found


@pytest.mark.dist
def test_operations_and_their_transposes() -> None:
    ranks = pool.run(WORLD, run)
    for name in ranks[0]:
        there = sum(rank[name][2] for rank in ranks)
        back = sum(rank[name][3] for rank in ranks)
        assert there == pytest.approx(back, rel=1e-12), name
    inputs = {name: [rank[name][0] for rank in ranks] for name in ranks[0]}
    outputs = {name: [rank[name][1] for rank in ranks] for name in ranks[0]}
    for rank in range(WORLD):
        assert torch.allclose(outputs["total"][rank], sum(inputs["total"]))
        assert torch.equal(outputs["gather"][rank], torch.cat(inputs["gather"], -1))
        assert torch.allclose(outputs["scatter_total"][rank], sum(inputs["scatter_total"])[:, 2 * rank : 2 * rank + 2])
        pieces = [x[:, 2 * rank : 2 * rank + 2] for x in inputs["exchange"]]
        assert torch.equal(outputs["exchange"][rank], torch.cat(pieces, 2))
        assert torch.equal(outputs["shift"][rank], inputs["shift"][rank - 1])
        assert torch.equal(outputs["piece"][rank], inputs["piece"][rank][:, 2 * rank : 2 * rank + 2])
    first, second, third = inputs["exchange_rows"]
    assert torch.equal(outputs["exchange_rows"][0], torch.cat((first[:1], third[:2])))
    assert torch.equal(outputs["exchange_rows"][1], torch.cat((second[:3], third[2:3])))
    assert torch.equal(outputs["exchange_rows"][2], torch.cat((first[1:], second[3:])))
