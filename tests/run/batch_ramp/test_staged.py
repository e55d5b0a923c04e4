from __future__ import annotations

import pytest

from llmfactory.core.errors import ConfigError
from llmfactory.run.batch_ramp.spec import Staged
from llmfactory.run.spec import Trainer


def test_parts_of_a_run() -> None:
    sizes = Trainer(max_steps=9, batch_size=8, batch_ramp=Staged(rows=[2, 4], until=[1, 3])).sizes(16)
    assert [sizes.rows(step) for step in range(5)] == [2, 4, 4, 8, 8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "at least one number of rows"),
        ({"rows": [2, 4], "until": [5]}, "each of 2 numbers of rows needs a step"),
        ({"rows": [2, 4], "until": [5, 5]}, "must ascend"),
        ({"rows": [2], "until": [0]}, "must ascend"),
    ],
)
def test_what_is_no_ramp(settings: dict[str, list[int]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Staged(**settings)


def test_the_full_batch_is_the_largest() -> None:
    with pytest.raises(ConfigError, match="the batch in the end, and the largest"):
        Trainer(max_steps=9, batch_size=8, batch_ramp=Staged(rows=[16], until=[3]))
