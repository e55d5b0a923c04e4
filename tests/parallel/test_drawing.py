"""What a step's seed does: the numbers of `torch.manual_seed`, and nothing that piles up with the steps."""

from __future__ import annotations

import torch

from llmfactory.parallel.drawing import generator_states, restore_generators, seed_generators


def test_it_draws_as_torch_does_and_leaves_nothing_behind() -> None:
    waiting = [module._queued_calls for module in (torch.cuda, torch.xpu, torch.mtia)]  # type: ignore[attr-defined]
    before = [len(calls) for calls in waiting]
    for seed in (0, 7, 2**55 + 1):
        seed_generators(seed, torch.device("cpu"))
        ours = torch.rand(5), torch.randperm(9)
        assert [len(calls) for calls in waiting] == before
        torch.manual_seed(seed)
        assert torch.equal(ours[0], torch.rand(5))
        assert torch.equal(ours[1], torch.randperm(9))
        before = [len(calls) for calls in waiting]


def test_states_are_put_back() -> None:
    states = generator_states()
    drawn = torch.rand(3)
    restore_generators(states)
    assert torch.equal(drawn, torch.rand(3))
