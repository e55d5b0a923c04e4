from __future__ import annotations

import pytest
import torch

from llmfactory.inference.sampler import (
    GREEDY,
    Sampling,
    distribution,
    draw,
    draw_by_blocks,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize,
    sample,
)

INF = float("inf")


def test_top_k_by_hand():
    logits = torch.tensor([[1.0, 4.0, 2.0, 3.0], [0.0, 0.0, 5.0, 0.0]])
    assert keep_top_k(logits, 2).tolist() == [[-INF, 4.0, -INF, 3.0], [0.0, 0.0, 5.0, 0.0]]  # equals of the second stay
    assert torch.equal(keep_top_k(logits, 4), logits)
    assert torch.equal(keep_top_k(logits, 99), logits)


@pytest.mark.parametrize(("p", "kept"), [(0.01, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.97, 4), (1.0, 4)])
def test_top_p_keeps_the_fewest_that_reach_it(p, kept):
    probabilities = torch.tensor([[0.05, 0.5, 0.15, 0.3]], dtype=torch.float64)
    got = keep_top_p((probabilities + 1e-15).log(), p).isfinite()[0]
    assert {int(token) for token in got.nonzero()} == set([1, 3, 2, 0][:kept])


def test_distribution_is_the_plain_formula():
    """Against loops: divide, keep k, keep p of what is left, normalize."""
    logits = 2 * torch.randn(5, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = distribution(logits, Sampling(temperature=0.7, top_k=8, top_p=0.9))
    for row in range(5):
        scaled = [float(value) / 0.7 for value in logits[row]]
        order = sorted(range(20), key=lambda token: -scaled[token])[:8]
        weights = [torch.tensor(scaled[token], dtype=torch.float64).exp() for token in order]
        total, reached, kept = sum(weights), 0.0, []
        for token, weight in zip(order, weights, strict=True):
            if reached >= 0.9:
                break
            kept.append((token, weight))
            reached += float(weight / total)
        want = torch.zeros(20, dtype=torch.float64)
        for token, weight in kept:
            want[token] = weight / sum(w for _, w in kept)
        torch.testing.assert_close(got[row], want, rtol=1e-12, atol=1e-12)


def test_draw_inverts_the_cumulated_distribution():
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64).repeat(6, 1)
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.9, 1 - 2**-53, 0.1], dtype=torch.float64)
    assert draw(probabilities, uniform).tolist() == [1, 1, 3, 3, 3, 1]


def test_draw_never_takes_an_impossible_token():
    """Sums that round to less than 1 do not push the largest number onto the last token."""
    probabilities = torch.full((1, 10), 0.1, dtype=torch.float64)
    probabilities[0, -1] = 0.0
    assert draw(probabilities, torch.tensor([1 - 2**-53], dtype=torch.float64)).tolist() == [8]


def test_frequencies():
    probabilities = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64).expand(40_000, 4)
    uniform = torch.rand(40_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(draw(probabilities, uniform), minlength=4) / 40_000
    torch.testing.assert_close(counts.double(), probabilities[0], rtol=0, atol=0.01)


def test_temperature():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    uniform = torch.tensor([0.999])
    assert sample(logits, uniform, GREEDY).tolist() == [1]
    assert float(distribution(logits, Sampling(temperature=0.01))[0, 1]) > 0.999
    torch.testing.assert_close(
        distribution(logits, Sampling(temperature=1e6)), torch.full((1, 3), 1 / 3, dtype=torch.float64), rtol=0, atol=1e-5
    )


def test_min_p_keeps_what_is_likely_beside_the_most_likely():
    logits = torch.tensor([[0.5, 0.24, 0.25, 0.01]], dtype=torch.float64).log()
    assert keep_min_p(logits, 0.49).isfinite().tolist() == [[True, False, True, False]]
    assert keep_min_p(logits, 0.0).isfinite().all()
    assert distribution(logits, Sampling(min_p=0.49))[0].tolist() == pytest.approx([2 / 3, 0, 1 / 3, 0])


def test_the_penalty_makes_seen_tokens_less_likely():
    logits = torch.tensor([[2.0, -2.0, 3.0]])
    seen = torch.tensor([[True, True, False]])
    assert penalize(logits, seen, 2.0).tolist() == [[1.0, -4.0, 3.0]]
    assert sample(
        torch.tensor([[2.0, 1.5]]),
        torch.zeros(1),
        Sampling(temperature=0.0, repetition_penalty=2.0),
        torch.tensor([[True, False]]),
    ).tolist() == [1]


@pytest.mark.parametrize("vocabulary", [1, 7, 256, 257, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_drawing_by_blocks_is_drawing(vocabulary: int, dtype: torch.dtype) -> None:
    """The same inversion: token for token in float64, but for what rounding moves in float32; never a token without probability."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = (3 * torch.randn(64, vocabulary, generator=generator, dtype=torch.float64)).to(dtype)
    logits[::2, vocabulary // 2 + 1 :] = float("-inf")
    uniform = torch.rand(64, generator=generator, dtype=torch.float64)
    uniform[:8] = torch.tensor([0.0, 0.0, 1 - 2**-53, 1 - 2**-53, 0.5, 0.5, 1e-300, 1e-300], dtype=torch.float64)
    found, wanted = draw_by_blocks(logits, uniform), draw(logits.double().softmax(-1), uniform)
    assert logits.gather(1, found[:, None]).isfinite().all()
    assert (found == wanted).double().mean() >= (1.0 if dtype == torch.float64 and vocabulary < 1000 else 0.95)
