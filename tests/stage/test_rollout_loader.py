"""Which answers a step learns from, when an iteration ends, and what is kept of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmfactory.core.errors import UserError
from llmfactory.objective.policy_spec import PolicySpec
from llmfactory.stage.iteration import Iteration
from llmfactory.stage.rl_spec import RlSpec
from llmfactory.stage.rollout_loader import FOLDER, RolloutLoader

ANSWERS, WIDTH = 8, 5


class Told:
    """Makes iterations whose rows hold their own numbers: 100 x iteration + answer."""

    def __init__(
        self,
        batch_size: int = 4,
        epochs: int = 2,
        rank: int = 0,
        ranks: int = 1,
        stop_kl: float | None = None,
        max_kl: float | None = None,
    ) -> None:
        self.spec = RlSpec(objective=PolicySpec(), answers=ANSWERS, epochs=epochs, stop_kl=stop_kl, max_kl=max_kl)
        self.job = SimpleNamespace(seed=3, trainer=SimpleNamespace(batch_size=batch_size, log_every=1))
        self.objective, self.answers = SimpleNamespace(kl_coef=0.5), ANSWERS
        self.world = SimpleNamespace(data_rank=rank, data_size=ranks)
        self.asked: list[tuple[int, float]] = []

    def next(self, drawn: int, kl_coef: float) -> Iteration:
        self.asked.append((drawn, kl_coef))
        number = len(self.asked) + drawn // 1000
        tokens = 100 * number + torch.arange(ANSWERS)[:, None].expand(-1, WIDTH)
        segments = (torch.arange(WIDTH) < 1 + torch.arange(ANSWERS)[:, None] % WIDTH).long()
        rows = {"tokens": tokens, "segments": segments, "prompts": tokens[:, 0], "rewards": tokens[:, 0].double()}
        failures = {"x: broken": number, f"y: {number}": 1}
        return Iteration(rows, drawn + 3, kl_coef * 2, {"reward": float(number)}, {"rollout": 2.0, "score": 1.0}, failures)


def loader_of(rounds: Told, steps: int, measures: Any = dict, resume: Path | None = None) -> RolloutLoader:
    return RolloutLoader(rounds, steps=steps, measures=measures, clock=lambda: 0.0, resume=resume)  # type: ignore[arg-type]


def numbers(batch: dict[str, torch.Tensor]) -> list[int]:
    return batch["tokens"][:, 0].tolist()  # type: ignore[no-any-return]


def test_each_epoch_of_an_iteration_has_every_answer_once_in_an_order_of_its_own() -> None:
    rounds = Told()
    loader = loader_of(rounds, 8)
    steps = [numbers(batch) for batch in loader]
    epochs = [steps[at] + steps[at + 1] for at in range(0, 8, 2)]
    for epoch, found in enumerate(epochs):
        assert sorted(found) == [100 * (1 + epoch // 2) + number for number in range(ANSWERS)]
    orders = {tuple(number % 100 for number in found) for found in epochs}
    assert len(orders) == 4, "neither epochs nor iterations repeat it"
    assert rounds.asked == [(0, 0.5), (3, 1.0)]
    place = loader.place
    assert (place.iteration, place.drawn, place.kl_coef, place.first_reward) == (2, 6, 2.0, 1.0)
    assert place.failures == {"x: broken": 3, "y: 1": 1, "y: 2": 1}
    assert place.seconds == {"rollout": 4.0, "score": 2.0, "update": 0.0}
    assert (place.metrics["reward"], place.metrics["iteration"]) == (2.0, 2.0)


def test_a_step_that_takes_all_answers_takes_them_as_they_are() -> None:
    loader = loader_of(Told(batch_size=ANSWERS, epochs=1), 2)
    assert [numbers(batch) for batch in loader] == [[100 * n + k for k in range(ANSWERS)] for n in (1, 2)]


def test_processes_share_a_step_out_and_see_it_alike_wide() -> None:
    wholes, *parts = (list(loader_of(Told(rank=rank, ranks=ranks), 4)) for rank, ranks in ((0, 1), (0, 2), (1, 2)))
    for whole, *some in zip(wholes, *parts, strict=True):
        assert numbers(whole) == [number for part in some for number in numbers(part)]
        widest = max(1 + number % 100 % WIDTH for number in numbers(whole))
        assert {batch["tokens"].shape[1] for batch in (whole, *some)} == {widest}


@pytest.mark.parametrize(("moved", "steps", "early"), [(0.05, [1, 1, 1, 1, 2], 0), (0.2, [1, 2, 3, 4, 5], 4)])
def test_an_iteration_ends_early_where_the_policy_has_moved_too_far(moved: float, steps: list[int], early: int) -> None:
    loader = loader_of(Told(stop_kl=0.1), 5, lambda: {"moved": moved})
    assert [numbers(batch)[0] // 100 for batch in loader] == steps
    assert loader.place.early == early


def test_what_ends_anyway_did_not_end_early() -> None:
    loader = loader_of(Told(batch_size=ANSWERS, epochs=1, stop_kl=0.1), 3, lambda: {"moved": 1.0})
    assert len(list(loader)) == 3
    assert loader.place.early == 0


def test_a_divergence_ends_the_run_unless_its_step_was_held_back() -> None:
    with pytest.raises(UserError, match=r"stage\.max_kl=1"):
        list(loader_of(Told(max_kl=1.0), 3, lambda: {"kl": 1.5}))
    for kl in (0.9, float("nan"), float("inf")):
        assert len(list(loader_of(Told(max_kl=1.0), 3, lambda kl=kl: {"kl": kl}))) == 3


@pytest.mark.parametrize("stop", [3, 4])
def test_it_goes_on_where_it_was(stop: int, tmp_path: Path) -> None:
    """In the midst of an iteration, whose answers are kept, and between two, where there are none to keep."""
    whole = [numbers(batch) for batch in loader_of(Told(), 8)]
    loader = loader_of(Told(), stop)
    for _ in loader:
        pass
    loader.keep()(tmp_path)
    assert ((tmp_path / FOLDER / "rows.safetensors").exists()) is (stop == 3)
    rounds = Told()
    rounds.asked = [(0, 0.5)]  # so that its next iteration is the second
    again = loader_of(rounds, 8 - stop, resume=tmp_path)
    assert [numbers(batch) for batch in again] == whole[stop:]
    assert rounds.asked[1:] == [(3, 1.0)]
    assert again.place.failures == {"x: broken": 3, "y: 1": 1, "y: 2": 1}


def test_a_checkpoint_without_its_rollout_is_refused(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "place.json").write_text("{")
    with pytest.raises(UserError, match="does not hold the rollout"):
        list(loader_of(Told(), 1, resume=tmp_path))
    (tmp_path / FOLDER / "place.json").write_text('{"done": false}')
    with pytest.raises(UserError, match="does not hold the rollout"):
        list(loader_of(Told(), 1, resume=tmp_path))
