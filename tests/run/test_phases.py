"""The clock of a profile: what it hears of blocking calls."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol

from llmfactory.run.phases import PhaseClock


def test_blocking_calls_are_timed_while_somebody_listens(tmp_path) -> None:
    """Of both kinds: those that give a handle to wait for, and functional ones. One
    that makes another (a tensor that waits when it is asked for) is one wait. They answer as ever, and afterwards are what they were."""
    plain = dist.Work.wait, funcol.wait_tensor
    clock = PhaseClock(torch.device("cpu"))
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        tensor = torch.ones(3)
        with clock.listening():
            clock.start()
            clock.begin("backward")
            handle = dist.all_reduce(tensor, async_op=True)
            handle.wait()
            assert torch.equal(funcol.wait_tensor(funcol.all_reduce(tensor, "sum", dist.group.WORLD)), torch.ones(3))
            found = clock.lap()
        assert len(found.waits) == 2
        assert found.phases["communication"] == sum(found.waits) > 0
        assert abs(found.gap()) < 0.02 or found.total < 1e-3
    finally:
        dist.destroy_process_group()
    assert (dist.Work.wait, funcol.wait_tensor) == plain


def test_an_end_of_batches_is_an_end() -> None:
    clock = PhaseClock(torch.device("cpu"))
    clock.start()
    assert list(clock.fetching([1, None, 2])) == [1, None, 2]
