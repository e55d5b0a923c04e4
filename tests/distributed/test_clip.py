"""The global norm over gradients that are cut, whole, and mixed."""

from __future__ import annotations

import pool
import pytest
import torch

from llmfactory.parallel.clip import clip_factor, global_norm, scale_
from llmfactory.parallel.weights import local


def cut_and_whole() -> tuple[float, float, float]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    line, square = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (2, 1))
    make = torch.Generator().manual_seed(0)
    full = [torch.randn(5, 3, generator=make, dtype=torch.float64) for _ in range(4)]
    cut = [
        distribute_tensor(full[0], line, [Shard(0)]),  # five rows on two ranks: uneven
        distribute_tensor(full[1], line, [Replicate()]),
        distribute_tensor(full[2], square, [Replicate(), Shard(0)]),
        full[3],
    ]
    expected = torch.cat(full).norm().item()
    norm = global_norm(cut)
    scale_(cut, clip_factor(norm, 0.5))
    return norm.item(), expected, local(cut[0]).norm().item()


@pytest.mark.dist
def test_pieces_count_once() -> None:
    results = pool.run(2, cut_and_whole)
    for norm, expected, _ in results:
        assert norm == pytest.approx(expected, rel=1e-12)
    make = torch.Generator().manual_seed(0)
    first = torch.randn(5, 3, generator=make, dtype=torch.float64)
    norm = results[0][1]
    for rank, piece in enumerate((first[:3], first[3:])):
        assert results[rank][2] == pytest.approx(piece.norm().item() * 0.5 / norm, rel=1e-5)
