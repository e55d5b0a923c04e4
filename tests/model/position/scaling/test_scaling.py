"""none, linear, ntk, dynamic_ntk, yarn and llama3 beside the reference library's tables."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmfactory.core.context import CausalMask, Context
from llmfactory.core.errors import ConfigError
from llmfactory.model.position.scaling.part import plain
from llmfactory.model.position.scaling.spec import DynamicNtk, Linear, Llama3, None_, Ntk, Yarn
from llmfactory.model.position.spec import Rope

WIDTH, THETA = 32, 500.0
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
CASES = {
    "linear": (Linear(factor=3.0), {"rope_type": "linear", "factor": 3.0}, 700),
    "dynamic": (DynamicNtk(factor=2.0, trained_positions=128), {"rope_type": "dynamic", "factor": 2.0}, 700),
    "dynamic_within": (DynamicNtk(factor=2.0, trained_positions=128), {"rope_type": "dynamic", "factor": 2.0}, 100),
    "yarn": (Yarn(factor=4.0, trained_positions=256), YARN, 700),
    "yarn_factor": (Yarn(factor=4.0, trained_positions=256, attention_factor=0.7), {**YARN, "attention_factor": 0.7}, 700),
    "yarn_betas": (
        Yarn(factor=4.0, trained_positions=256, fast=20.0, slow=2.0, whole_pairs=False),
        {**YARN, "beta_fast": 20, "beta_slow": 2, "truncate": False},
        700,
    ),
    **{
        f"yarn_{trained}": (
            Yarn(factor=4.0, trained_positions=trained),
            {**YARN, "original_max_position_embeddings": trained},
            700,
        )
        for trained in (100_000, 10_000_000)  # the slow end of the ramp behind the last pair, and beyond the width
    },
    "llama3": (
        Llama3(factor=8.0, trained_positions=256, low=1.5, high=5.0),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "original_max_position_embeddings": 256,
            "low_freq_factor": 1.5,
            "high_freq_factor": 5.0,
        },
        700,
    ),
}


def frequencies(spec, positions, dtype=torch.float32, width=WIDTH):
    return spec.build().frequencies(THETA, width, torch.tensor(positions), dtype)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference_library(case):
    spec, parameters, length = CASES[case]
    config = LlamaConfig(
        hidden_size=2 * WIDTH,
        num_attention_heads=2,
        max_position_embeddings=128,
        rope_parameters={"rope_theta": THETA, **parameters},
    )
    want, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu", seq_len=length)
    torch.testing.assert_close(frequencies(spec, [[0, length - 1]]).flatten(), want, rtol=2e-6, atol=0)
    assert spec.build().factor == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("spec", [Yarn(factor=4.0, trained_positions=256), Llama3(factor=4.0, trained_positions=256)])
def test_fast_pairs_stay_and_slow_ones_are_divided(spec):
    pairs, stretched = frequencies(None_(), [[0]], torch.float64), frequencies(spec, [[0]], torch.float64)
    assert pairs[0] == stretched[0] == 1
    torch.testing.assert_close(stretched[-1], pairs[-1] / 4, rtol=1e-12, atol=0)
    ratio = pairs / stretched
    assert ((ratio[1:] - ratio[:-1]) >= -1e-12).all()
    assert ((ratio > 1.01) & (ratio < 3.99)).any()


def test_ntk_divides_the_slowest_by_the_factor_and_keeps_the_fastest():
    pairs, stretched = frequencies(None_(), [[0]], torch.float64), frequencies(Ntk(factor=5.0), [[0]], torch.float64)
    assert stretched[0] == 1
    torch.testing.assert_close(stretched[-1], pairs[-1] / 5, rtol=1e-12, atol=0)
    assert frequencies(Ntk(factor=5.0), [[0]], width=2).tolist() == [1.0]


def test_a_row_s_length_is_its_own():
    spec = DynamicNtk(factor=2.0, trained_positions=8)
    both = frequencies(spec, [[0, 30], [0, 5]])
    assert torch.equal(both[:1], frequencies(spec, [[0, 30]]))
    assert torch.equal(both[1].flatten(), plain(THETA, WIDTH, torch.device("cpu"), torch.float32))


def test_tables_carry_scaling_and_factor(frame):
    part = Rope(theta=THETA, scaling=Yarn(factor=4.0, trained_positions=16)).build(frame(head_dim=8))
    positions = torch.tensor([[0, 3, 40]])
    cos, sin = part.prepare(Context(positions, CausalMask(3)), torch.float64).rotary
    angle = positions[0, :, None] * frequencies(Yarn(factor=4.0, trained_positions=16), [[0]], torch.float64, width=8)
    factor = part.scaling.factor
    assert factor > 1.1
    torch.testing.assert_close(cos[0, 0], torch.cat((angle.cos(), angle.cos()), -1) * factor)
    torch.testing.assert_close(sin[0, 0], torch.cat((-angle.sin(), angle.sin()), -1) * factor)


@pytest.mark.parametrize(
    ("make", "repair"),
    [
        (lambda: Linear(factor=0.5), "factor=1.0"),
        (lambda: Ntk(factor=0.0), "factor=1.0"),
        (lambda: DynamicNtk(factor=2.0, trained_positions=0), "trained_positions=1"),
        (lambda: Yarn(factor=2.0, trained_positions=8, fast=1.0, slow=2.0), "fast=64.0"),
        (lambda: Yarn(factor=2.0, trained_positions=8, attention_factor=0.0), "attention_factor=1.0"),
        (lambda: Llama3(factor=2.0, trained_positions=8, high=1.0), "high=4.0"),
    ],
)
def test_problems(make, repair):
    with pytest.raises(ConfigError) as caught:
        make()
    assert [problem.repair for problem in caught.value.problems] == [repair]
