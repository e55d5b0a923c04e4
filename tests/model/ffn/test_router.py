from __future__ import annotations

import pytest
import torch

from llmfactory.core.context import Context, FullMask, Record
from llmfactory.core.sharding import Layout
from llmfactory.model.ffn.router import Router, balance
from llmfactory.model.ffn.spec import Activation, BalanceOver, Moe

E, K = 5, 2


def router(site, name="", **changes):
    fields = {"hidden": 12, "n_experts": E, "k": K, "activation": Activation.silu, "gated": True}
    part = Router(Moe(**{**fields, **changes}), site(dim=8, name=name))
    torch.manual_seed(0)
    torch.nn.init.normal_(part.weight)
    return part


def context(segments, record=None):
    return Context(torch.zeros_like(segments), FullMask(), segments=segments, record=record)


def choices(*shape):
    torch.manual_seed(1)
    shares = torch.randn(*shape, E, dtype=torch.float64).softmax(-1)
    return shares, shares.topk(K).indices


def plain_balance(shares, experts):
    """Of one text: E sum_i f_i p_i, with f the visits a token and p the mean share (Fedus et al. 2021, equations 4-6)."""
    tokens, total = len(shares), 0.0
    for expert in range(E):
        visits = sum(expert in chosen for chosen in experts.tolist()) / tokens
        total += visits * float(shares[:, expert].sum()) / tokens
    return E * total


def test_balance_of_rows_with_padding():
    shares, experts = choices(3, 7)
    real = torch.ones(3, 7, dtype=torch.int64)
    real[0, 4:] = 0
    real[2] = 0  # a row of padding alone
    want = 4 * plain_balance(shares[0, :4], experts[0, :4]) + 7 * plain_balance(shares[1], experts[1])
    assert float(balance(shares, experts, real)) == pytest.approx(want, rel=1e-12)


def test_even_routing_has_the_least_balance_loss():
    even = torch.full((1, E, E), 1 / E, dtype=torch.float64)
    experts = torch.stack([torch.arange(E), (torch.arange(E) + 1) % E], -1)[None]
    assert float(balance(even, experts, torch.ones(1, E))) == pytest.approx(E * K)  # K for each of E tokens


def record_of(part, logits, segments):
    record = Record()
    shares = logits.softmax(-1)
    part.leave_losses(logits, shares, shares.topk(K).indices, context(segments, record))
    return {name: float(total) for name, total in record.sums.items()}


def test_what_is_recorded(site):
    torch.manual_seed(2)
    logits = torch.randn(2, 6, E, dtype=torch.float64)
    segments = torch.tensor([[1, 1, 2, 2, 0, 0], [1] * 6])
    shares = logits.softmax(-1)
    real = segments > 0
    z = float(sum(torch.logsumexp(row, 0) ** 2 for row in logits[real]))
    rows = float(balance(shares, shares.topk(K).indices, real))
    pooled = float(real.sum()) * plain_balance(shares[real], shares.topk(K).indices[real])
    assert rows != pytest.approx(pooled, rel=1e-3)
    assert record_of(router(site), logits, segments) == {}
    part = router(site, balance=0.3, z=0.1)
    assert part.own_terms == ("balance", "router_z")
    assert record_of(part, logits, segments) == pytest.approx({"balance": 0.3 * rows, "router_z": 0.1 * z}, rel=1e-12)
    part = router(site, balance=0.3, balance_over=BalanceOver.batch)
    assert part.own_terms == ("balance",)
    assert record_of(part, logits, segments) == pytest.approx({"balance": 0.3 * pooled}, rel=1e-12)


@pytest.mark.parametrize("pieces", [[slice(0, 1), slice(1, 4)], [slice(0, 2), slice(2, 4)]])
def test_rows_add_up_however_they_are_cut(site, pieces):
    torch.manual_seed(3)
    logits = torch.randn(4, 6, E, dtype=torch.float64)
    segments = (torch.rand(4, 6) > 0.3).long()
    part = router(site, balance=1.0, z=1.0)
    whole = record_of(part, logits, segments)
    parts = [record_of(part, logits[piece], segments[piece]) for piece in pieces]
    assert {name: sum(one[name] for one in parts) for name in whole} == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("over", BalanceOver)
def test_pieces_of_rows_add_up_in_value_and_gradient(site, in_pieces, over):
    """Each piece records its share: what all compute alike is divided by their number, what is of its own tokens is not."""
    torch.manual_seed(4)
    logits = torch.randn(3, 6, E, dtype=torch.float64, requires_grad=True)
    segments = torch.tensor([[1, 1, 1, 0, 0, 0], [1] * 6, [0] * 6])
    part = router(site, balance=0.3, z=0.1, balance_over=over)

    def terms(logits, segments, pieces=None):
        record, shares = Record(), logits.softmax(-1)
        at = context(segments, record).with_(pieces=pieces)
        part.leave_losses(logits, shares, shares.topk(K).indices, at)
        return record.sums

    whole = terms(logits, segments)
    parts = in_pieces([[0, 5], [1, 4], [2, 3]], lambda pieces: terms(pieces.own(logits), pieces.own(segments), pieces))
    for name, value in whole.items():
        shares = [one[name] for one in parts]
        (grad,) = torch.autograd.grad(value, logits, retain_graph=True)
        (cut_grad,) = torch.autograd.grad(sum(shares), logits, retain_graph=True)
        assert sum(shares).item() == pytest.approx(value.item(), rel=1e-12)
        torch.testing.assert_close(cut_grad, grad, rtol=1e-12, atol=1e-12)
    assert [one["balance"].item() for one in parts] == pytest.approx([whole["balance"].item() / 3] * 3, rel=1e-12)


def test_two_layers_add_to_one_record(site):
    logits, segments = torch.randn(1, 6, E), torch.ones(1, 6, dtype=torch.int64)
    part, record = router(site, z=1.0), Record()
    for _ in range(2):
        part.leave_losses(logits, logits, logits.topk(K).indices, context(segments, record))
    assert float(record.sums["router_z"]) == pytest.approx(2 * record_of(part, logits, segments)["router_z"])


def test_the_two_sides_of_an_encoder_decoder_have_terms_of_their_own(site):
    part = router(site, z=1.0, name="encoder")
    assert part.own_terms == ("encoder_router_z",)
    assert record_of(part, torch.zeros(1, 2, E), torch.ones(1, 2)).keys() == {"encoder_router_z"}


def test_nobody_asks(site):
    logits = torch.randn(1, 6, E)
    router(site, balance=1.0).leave_losses(logits, logits, logits.topk(K).indices, Context(torch.zeros(1, 6), FullMask()))


def test_logits_are_float32_in_half_precision(site):
    part = router(site).bfloat16()
    x = torch.randn(2, 3, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = part(x)
    assert got.dtype is torch.float32
    torch.testing.assert_close(got, x.float() @ part.weight.float().T, rtol=1e-6, atol=1e-6)
    assert router(site).double()(x.double()).dtype is torch.float64


def test_jitter_is_for_training(site):
    part = router(site, jitter=0.1).double()
    x = torch.ones(1, 400, 8, dtype=torch.float64)
    with torch.no_grad():
        part.weight.zero_()
        part.weight[0, 0] = 1.0
    noisy = part(x)[..., 0].detach()
    assert float(noisy.min()) < 0.91 < 1.09 < float(noisy.max())
    assert float(noisy.min()) >= 0.9
    assert float(noisy.max()) <= 1.1
    assert torch.equal(part.eval()(x)[..., 0], torch.ones(1, 400, dtype=torch.float64))
    assert torch.equal(x, torch.ones_like(x))


def test_declarations(site):
    (declared,) = router(site).declare().values()
    assert declared.layout is Layout.replicated
    assert declared.start.std == 0.02
    assert declared.decay
