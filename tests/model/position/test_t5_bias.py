from __future__ import annotations

import pytest
import torch

from llmfactory.core.context import CausalMask, Context, FullMask
from llmfactory.core.errors import ConfigError
from llmfactory.model.initialize import initialize
from llmfactory.model.position.spec import T5Bias
from llmfactory.model.position.t5_bias import bucket


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (8, 20), (6, 50)])
def test_buckets_equal_the_reference_library(causal, n_buckets, max_distance):
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-300, 301)
    want = T5Attention._relative_position_bucket(distance, not causal, n_buckets, max_distance)
    assert torch.equal(bucket(distance, n_buckets, max_distance, causal), want)


def test_each_near_distance_has_its_own_bucket_and_far_ones_the_last():
    found = bucket(torch.arange(0, -200, -1), 32, 128, causal=True).tolist()
    assert found[:16] == list(range(16))
    assert found[16:] == sorted(found[16:])
    assert set(found[128:]) == {31}
    both = bucket(torch.tensor([-1, 0, 1]), 32, 128, causal=False).tolist()
    assert both == [1, 0, 17]


def test_one_table_gives_every_layer_its_bias(frame):
    part = T5Bias(n_buckets=8, max_distance=20).build(frame(n_heads=3, causal=False))
    initialize(part, 0)
    assert part.weight.shape == (8, 3)
    assert part.declare()["weight"].decay
    rows = torch.tensor([[0, 1, 2, 30], [3, 0, 1, 9]])
    bias = part.prepare(Context(rows, FullMask()), torch.float32).bias
    for b in range(2):
        for t in range(4):
            for s in range(4):
                number = bucket(rows[b, s] - rows[b, t], 8, 20, causal=False)
                torch.testing.assert_close(bias[b, :, t, s], part.weight[number])
    bias.sum().backward()
    assert part.weight.grad.abs().sum() == 2 * 3 * 16


def test_a_step_sees_the_row_of_its_query(frame):
    part = T5Bias().build(frame(n_heads=3, causal=True))
    initialize(part, 0)
    rows = torch.arange(40)[None]
    whole = part.prepare(Context(rows, CausalMask(40)), torch.float32).bias
    step = part.prepare(Context(rows[:, 39:], CausalMask(40, queries=1), key_positions=rows), torch.float32).bias
    assert torch.equal(step, whole[:, :, 39:])


@pytest.mark.parametrize(
    ("fields", "repair"),
    [({"n_buckets": 2}, "n_buckets=4"), ({"n_buckets": 7}, "n_buckets=8"), ({"max_distance": 16}, "max_distance=128")],
)
def test_problems(fields, repair):
    with pytest.raises(ConfigError) as caught:
        T5Bias(**fields)
    assert [problem.repair for problem in caught.value.problems] == [repair]
