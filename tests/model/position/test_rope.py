from __future__ import annotations

import cmath

import pytest
import torch

from llmfactory.core.context import CausalMask, Context
from llmfactory.core.errors import ConfigError
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.position.spec import Rope


def prepared(part, positions, dtype):
    context = Context(torch.tensor(positions), CausalMask(len(positions[0])))
    return part.prepare(context, dtype)


def test_pairs_are_complex_numbers_that_turn(frame):
    """x_i + i x_(i+D/2) is multiplied by e^(i p theta^(-2i/D)) (equation 34)."""
    torch.manual_seed(0)
    head_dim, theta = 8, 50.0
    part = Rope(theta=theta).build(frame(head_dim=head_dim))
    positions = [[0, 1, 7, 3], [5, 0, 2, 900]]
    context = prepared(part, positions, torch.float64)
    q, k = torch.randn(2, 3, 4, head_dim, dtype=torch.float64), torch.randn(2, 1, 4, head_dim, dtype=torch.float64)
    for before, after in zip((q, k), part.rotate(q, k, context), strict=True):
        for b, row in enumerate(positions):
            for t, p in enumerate(row):
                for i in range(head_dim // 2):
                    for h in range(before.shape[1]):
                        z = complex(before[b, h, t, i], before[b, h, t, i + head_dim // 2])
                        want = z * cmath.exp(1j * p * theta ** (-2 * i / head_dim))
                        assert abs(complex(after[b, h, t, i], after[b, h, t, i + head_dim // 2]) - want) < 1e-12


def test_scores_depend_on_distance_only(frame):
    torch.manual_seed(0)
    part = Rope().build(frame(head_dim=16))
    q, k = torch.randn(1, 1, 6, 16, dtype=torch.float64), torch.randn(1, 1, 6, 16, dtype=torch.float64)
    scores = []
    for shift in (0, 1000):
        turned_q, turned_k = part.rotate(q, k, prepared(part, [[p + shift for p in range(6)]], torch.float64))
        scores.append(turned_q @ turned_k.transpose(-1, -2))
    torch.testing.assert_close(*scores, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("dtype", "wide"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)]
)
def test_tables_are_wide_and_the_result_keeps_its_dtype(dtype, wide, frame):
    part = Rope().build(frame(head_dim=8))
    context = prepared(part, [[4095, 4096]], dtype)
    assert {table.dtype for table in context.rotary} == {wide}
    x = torch.randn(1, 2, 2, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    turned, _ = part.rotate(x, x, context)
    assert turned.dtype == dtype
    exact, _ = part.rotate(x.double(), x.double(), prepared(part, [[4095, 4096]], torch.float64))
    torch.testing.assert_close(
        turned.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-3 if dtype != torch.float64 else 1e-10
    )


def test_nothing_is_stored(frame):
    part = Rope().build(frame(head_dim=8))
    assert not list(part.parameters()) + list(part.buffers())
    assert part.limit is None
    assert part.declare() == {}


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.5, 1 / 3])
def test_a_share_of_the_head_in_either_pairing(frame, share, interleaved):
    """Rotated coordinates are the first ones; their angles are those of a head of that width."""
    head_dim, theta = 12, 50.0
    width = round(share * head_dim)
    part = Rope(theta=theta, share=share, interleaved=interleaved).build(frame(head_dim=head_dim))
    q = torch.randn(1, 2, 3, head_dim, dtype=torch.float64)
    positions = [0, 7, 100]
    after, _ = part.rotate(q, q, prepared(part, [positions], torch.float64))
    assert torch.equal(after[..., width:], q[..., width:])
    for t, p in enumerate(positions):
        for i in range(width // 2):
            x, y = (2 * i, 2 * i + 1) if interleaved else (i, i + width // 2)
            want = torch.complex(q[0, :, t, x], q[0, :, t, y]) * cmath.exp(1j * p * theta ** (-2 * i / width))
            torch.testing.assert_close(torch.complex(after[0, :, t, x], after[0, :, t, y]), want)


def test_a_share_is_rounded_down_to_whole_pairs():
    assert [Rope(share=share).rotated(width) for share, width in ((0.4, 80), (0.4, 8), (0.25, 96), (1 / 3, 48))] == [
        32,
        2,
        24,
        16,
    ]


def test_odd_heads_are_refused(llama):
    with pytest.raises(ConfigError, match="18 / 6 = 3 wide") as caught:
        llama(dim=18)
    (problem,) = caught.value.problems
    assert (problem.path, problem.repair) == ("attention.n_heads", "attention.n_heads=3 attention.n_kv_heads=null")
    with pytest.raises(ConfigError) as caught:
        llama(dim=15, attention=Gqa(n_heads=3))
    assert [problem.repair for problem in caught.value.problems] == ["attention.head_dim=6"]
    with pytest.raises(ConfigError) as caught:
        llama(attention=Gqa(n_heads=3, head_dim=7))
    assert [problem.repair for problem in caught.value.problems] == ["attention.head_dim=8"]


@pytest.mark.parametrize(
    ("fields", "path", "repair"),
    [
        ({"theta": 1.0}, "theta", "theta=10000.0"),
        ({"share": 0.0}, "share", "share=1.0"),
        ({"share": 1.5}, "share", "share=1.0"),
    ],
)
def test_problems(fields, path, repair):
    with pytest.raises(ConfigError) as caught:
        Rope(**fields)
    assert [(problem.path, problem.repair) for problem in caught.value.problems] == [(path, repair)]


def test_a_share_without_a_pair_is_refused(llama):
    with pytest.raises(ConfigError) as caught:
        llama(position=Rope(share=0.25))
    (problem,) = caught.value.problems
    assert (problem.path, problem.repair) == ("position.share", "position.share=0.5")
    assert llama(position=Rope(share=0.5)).position.rotated(4) == 2
