"""Windows of words and their noise, against loops over the same random numbers and against expectations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmfactory.core.batch import IGNORE
from llmfactory.data.corruption.chance import row_keys, uniform
from llmfactory.data.corruption.windows import KEPT, NOISE, REACH, Windows

V, T = 20, 14
FREQUENCIES = np.array([0, 500, 1, 40, 40, 3, *range(10, 24)])


def windows(**changes: object) -> Windows:
    fields = {"window": 3, "negatives": 2, "subsample": 0.01, "noise_power": 0.75, "each": True}
    return Windows(FREQUENCIES, T, **{**fields, **changes})


def plain(rows: int = 3) -> dict[str, torch.Tensor]:
    tokens = torch.randint(1, V, (rows, T), generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[1] * 6 + [2] * 5 + [0] * 3, [1] * T, [0] * 3 + [1] * 11])[:rows]
    return {"tokens": tokens, "labels": tokens, "segments": segments, "positions": torch.arange(T).expand(rows, T)}


@pytest.mark.parametrize("each", [True, False])
def test_equals_loops(each: bool) -> None:
    batch, keys = plain(), row_keys(5, np.arange(3))
    found = windows(each=each)(batch, keys)
    share, powers = FREQUENCIES / FREQUENCIES.sum(), (FREQUENCIES**0.75) * (FREQUENCIES > 0)
    edges = np.cumsum(powers) / powers.sum()
    slots = 6 if each else 1
    for row in range(3):
        kept, reach = uniform(keys, T, KEPT)[row], uniform(keys, T, REACH)[row]
        drawn = uniform(keys, T * slots * 2, NOISE)[row].reshape(T, slots, 2)
        tokens, segments = batch["tokens"][row].tolist(), batch["segments"][row].tolist()
        left = [t for t in range(T) if segments[t] and kept[t] < np.sqrt(0.01 / share[tokens[t]])]
        assert found["tokens"][row, : len(left)].tolist() == [tokens[t] for t in left]
        assert found["labels"][row].tolist() == [tokens[t] for t in left] + [IGNORE] * (T - len(left))
        assert found["segments"][row].tolist() == [segments[t] for t in left] + [0] * (T - len(left))
        assert found["positions"][row, : len(left)].tolist() == left
        for place in range(T):
            near = []
            for offset in (-3, -2, -1, 1, 2, 3):
                other, inside = place + offset, 0 <= place + offset < len(left) and place < len(left)
                close = inside and segments[left[other]] == segments[left[place]] and abs(offset) <= 1 + int(reach[place] * 3)
                near.append(tokens[left[other]] if close else IGNORE)
            assert found["near"][row, place].tolist() == near
            own = near if each else [tokens[left[place]] if place < len(left) else IGNORE]
            for slot, target in enumerate(own):
                noise = [int(np.sum(edges <= number)) for number in drawn[place, slot]]
                assert found["noise"][row, place, slot].tolist() == [IGNORE if word == target else word for word in noise]


def test_noise_follows_the_power_of_frequency() -> None:
    batch = {name: field.repeat(60, 1) for name, field in plain(2).items()}
    noise = windows(negatives=50, each=False, subsample=None)(batch, row_keys(0, np.arange(120)))["noise"].flatten()
    counts = torch.bincount(noise[noise >= 0], minlength=V).double()
    expected = torch.from_numpy(FREQUENCIES**0.75 * (FREQUENCIES > 0))
    assert counts[0] == 0
    # A word is no noise of itself, so the shares are only about those of the table.
    torch.testing.assert_close(counts / counts.sum(), expected / expected.sum(), rtol=0.25, atol=0.01)


def test_words_are_left_out_as_often_as_they_should_be() -> None:
    batch = {name: field.repeat(500, 1) for name, field in plain(2).items()}
    batch["tokens"] = torch.ones_like(batch["tokens"])
    found = windows(subsample=0.1)(batch, row_keys(0, np.arange(1000)))
    share = (found["segments"] > 0).sum() / (batch["segments"] > 0).sum()
    assert share == pytest.approx((0.1 * FREQUENCIES.sum() / 500) ** 0.5, rel=0.03)
    whole = windows(subsample=None)(batch, row_keys(0, np.arange(1000)))
    assert (whole["segments"] > 0).sum() == (batch["segments"] > 0).sum()


def test_every_reach_is_as_likely() -> None:
    batch = {name: field[1:].repeat(400, 1) for name, field in plain(2).items()}
    near = windows(subsample=None)(batch, row_keys(0, np.arange(400)))["near"][:, 4:-4]
    counts = (near != IGNORE).double().mean((0, 1))
    torch.testing.assert_close(counts, torch.tensor([1, 2, 3, 3, 2, 1]).double() / 3, rtol=0.05, atol=0.0)


def test_a_row_is_the_same_beside_others() -> None:
    batch, keys = plain(), row_keys(9, np.arange(3))
    together = windows()(batch, keys)
    for row in range(3):
        alone = windows()({name: field[row : row + 1] for name, field in batch.items()}, keys[row : row + 1])
        assert all(torch.equal(alone[name][0], together[name][row]) for name in together)
