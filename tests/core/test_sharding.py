from __future__ import annotations

import torch

from llmfactory.core.sharding import Constant, Normal, name_seed


def test_seeds_depend_on_name_and_seed_and_never_change() -> None:
    assert name_seed(0, "head.weight") == 28571971188031454
    seeds = {name_seed(seed, name) for seed in (0, 1) for name in ("a", "b", "blocks.1.a", "blocks.11.a")}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**56 for seed in seeds)


def test_fills() -> None:
    generator = torch.Generator().manual_seed(3)
    numbers = torch.empty(200, 200)
    Normal(0.5).fill(numbers, generator)
    assert abs(numbers.mean().item()) < 0.01
    assert abs(numbers.std().item() - 0.5) < 0.01
    Constant(1.0).fill(numbers, generator)
    assert torch.equal(numbers, torch.ones(200, 200))
