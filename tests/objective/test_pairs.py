"""Pairs: what their objectives share, and each loss against its paper's equation."""

from __future__ import annotations

import math

import pytest
import torch
from compared import SIZES, compared, with_reference
from judged import close, found, gradient
from torch import Tensor

from llmfactory.objective.answers import log_probs
from llmfactory.objective.objective import Outputs
from llmfactory.objective.orpo import log_odds
from llmfactory.objective.preference_spec import Cpo, Dpo, Ipo, Orpo, PreferenceSpec, Reference, Simpo, Slic

GIVEN, NONE = Reference.precomputed, Reference.none
SPECS: list[tuple[PreferenceSpec, Reference]] = [
    (Dpo(beta=0.3), GIVEN),
    (Dpo(beta=0.3, label_smoothing=0.1), GIVEN),
    (Dpo(beta=0.3, label_smoothing=0.1, robust=True), GIVEN),
    (Dpo(beta=0.3), NONE),
    (Ipo(beta=0.2), GIVEN),
    (Ipo(beta=0.2, average=False), GIVEN),
    (Slic(beta=0.5, margin=2.0), GIVEN),
    (Slic(nll=0.4), NONE),
    (Cpo(beta=0.2, nll=0.7, label_smoothing=0.05), NONE),
    (Cpo(beta=0.2, nll=0.0), NONE),
    (Simpo(beta=2.5, gamma=0.8), NONE),
    (Simpo(gamma=0.3, label_smoothing=0.2), NONE),
    (Orpo(beta=0.3), NONE),
]


def plain(spec: PreferenceSpec, logps: Tensor, known: Tensor, lengths: Tensor) -> Tensor:
    """The papers' equations, over pairs [B, 2]."""
    chosen, rejected = logps.T
    ratios = logps - known
    h = ratios[:, 0] - ratios[:, 1]
    nll = -chosen.sum() / lengths[:, 0].sum()
    mean = logps / lengths
    if isinstance(spec, Dpo):
        e, right, wrong = (
            spec.label_smoothing,
            -torch.log(torch.sigmoid(spec.beta * h)),
            -torch.log(torch.sigmoid(-spec.beta * h)),
        )
        return (((1 - e) * right - e * wrong) / (1 - 2 * e) if spec.robust else (1 - e) * right + e * wrong).mean()
    if isinstance(spec, Ipo):
        h = (ratios / lengths)[:, 0] - (ratios / lengths)[:, 1] if spec.average else h
        return ((h - 1 / (2 * spec.beta)) ** 2).mean()
    if isinstance(spec, Slic):
        return torch.clamp(spec.margin - spec.beta * h, min=0).mean() + spec.nll * nll
    if isinstance(spec, Cpo):
        e, g = spec.label_smoothing, spec.beta * (chosen - rejected)
        return (-(1 - e) * torch.log(torch.sigmoid(g)) - e * torch.log(torch.sigmoid(-g))).mean() + spec.nll * nll
    if isinstance(spec, Simpo):
        e, g = spec.label_smoothing, spec.beta * (mean[:, 0] - mean[:, 1]) - spec.gamma
        return (-(1 - e) * torch.log(torch.sigmoid(g)) - e * torch.log(torch.sigmoid(-g))).mean()
    assert isinstance(spec, Orpo)
    odds = mean.exp() / (1 - mean.exp())
    return nll - spec.beta * torch.log(torch.sigmoid(torch.log(odds[:, 0] / odds[:, 1]))).mean()


@pytest.mark.parametrize(("spec", "reference"), SPECS, ids=str)
def test_the_loss_is_the_papers(spec: PreferenceSpec, reference: Reference) -> None:
    case = compared()
    known = with_reference(case) if reference is GIVEN else torch.zeros_like(case.sums())
    objective = spec.build(reference)
    values = found(objective, case.outputs, case.batch)
    ours, theirs = sum(values[name] for name in objective.terms), plain(spec, case.sums(), known, case.lengths())
    close(ours, theirs)
    close(gradient(case.outputs, ours), gradient(case.outputs, theirs))


@pytest.mark.parametrize(("spec", "reference"), SPECS, ids=str)
def test_rows_of_padding_and_micro_batches_count_nothing(spec: PreferenceSpec, reference: Reference) -> None:
    """The sums of pieces add up to those of all rows, among them one that holds a place only."""
    case = compared([*SIZES, (1, [0, 0])])
    known = with_reference(compared())
    case.batch["reference_logps"] = torch.cat((known, torch.full((1, 2), -7.0, dtype=known.dtype)))
    objective = spec.build(reference)
    whole = objective(case.outputs, case.batch)
    cuts = [slice(0, 1), slice(1, 4), slice(4, 5)]
    pieces = [
        objective(Outputs(case.outputs.hidden[cut], case.outputs.head), {name: field[cut] for name, field in case.batch.items()})
        for cut in cuts
    ]
    for name, (total, count) in whole.items():
        close(sum(piece[name][0] for piece in pieces), total)
        assert sum(piece[name][1] for piece in pieces) == count
    assert whole[objective.terms[0]][1] == len(SIZES)
    real = objective(Outputs(case.outputs.hidden[:4], case.outputs.head), {name: field[:4] for name, field in case.batch.items()})
    for name, (total, _) in real.items():
        close(whole[name][0], total)
    total = sum(whole[name][0] for name in objective.terms)
    assert not gradient(case.outputs, total)[4].any()


def test_what_is_watched() -> None:
    case = compared()
    known = with_reference(case)
    values = found(Dpo(beta=0.5).build(GIVEN), case.outputs, case.batch)
    rewards = 0.5 * (case.sums() - known)
    close(values["reward_chosen"], rewards[:, 0].mean())
    close(values["reward_rejected"], rewards[:, 1].mean())
    close(values["margin"], (rewards[:, 0] - rewards[:, 1]).mean())
    close(values["accuracy"], (rewards[:, 0] > rewards[:, 1]).double().mean())
    close(values["logp_chosen"], case.sums()[:, 0].mean())
    close(values["logp_rejected"], case.sums()[:, 1].mean())
    assert not any(values[name].requires_grad for name in Dpo().build().watched)
    case.batch["reference_logps"] = log_probs(case.outputs, case.batch, 2).detach()  # a model that has not moved
    assert found(Dpo().build(GIVEN), case.outputs, case.batch)["accuracy"] == 0.5
    close(found(Dpo().build(GIVEN), case.outputs, case.batch)["loss"], math.log(2))


@pytest.mark.parametrize(("spec", "reference"), SPECS, ids=str)
def test_rewards_are_what_a_loss_takes_answers_to_be_worth(spec: PreferenceSpec, reference: Reference) -> None:
    """Nats of the answer, or of one of its tokens, beyond those of the reference where there is one, times beta."""
    case = compared()
    nats = case.sums() - (with_reference(case) if reference is GIVEN else 0)
    if isinstance(spec, (Simpo, Orpo)) or (isinstance(spec, Ipo) and spec.average):
        nats = nats / case.lengths()
    values, beta = found(spec.build(reference), case.outputs, case.batch), spec.beta  # type: ignore[attr-defined]
    close(values["reward_chosen"], beta * nats[:, 0].mean())
    close(values["reward_rejected"], beta * nats[:, 1].mean())


def test_a_measure_smooths_no_labels() -> None:
    case = compared()
    with_reference(case)
    for spec in (Dpo(label_smoothing=0.2), Dpo(label_smoothing=0.2, robust=True)):
        measured = found(spec.build(GIVEN).plain(), case.outputs, case.batch)["loss"]
        close(measured, found(Dpo().build(GIVEN), case.outputs, case.batch)["loss"])
    for smooth, sharp in ((Cpo(label_smoothing=0.2), Cpo()), (Simpo(label_smoothing=0.2), Simpo())):
        measured, wanted = (found(one, case.outputs, case.batch) for one in (smooth.build().plain(), sharp.build()))
        for name, value in wanted.items():
            close(measured[name], value)


@pytest.mark.parametrize("spec", [Dpo(beta=1.0), Cpo(beta=1.0), Simpo(), Orpo(), Slic(), Ipo()], ids=str)
def test_answers_as_far_apart_as_can_be(spec: PreferenceSpec) -> None:
    """One certain, one impossible: finite losses and gradients."""
    case = compared()
    case.outputs.hidden.data *= 1e4
    case.batch["reference_logps"] = torch.zeros(len(SIZES), 2, dtype=torch.float64)
    objective = spec.build(GIVEN if spec.compares.name != "never" else NONE)
    total = sum(objective(case.outputs, case.batch)[name][0] for name in objective.terms)
    assert total.isfinite()  # type: ignore[union-attr]
    assert gradient(case.outputs, total).isfinite().all()  # type: ignore[arg-type]


def test_odds_where_a_probability_is_near_one_or_zero() -> None:
    logp = torch.tensor([-1e-14, -1e-6, -0.5, -0.7, -5.0, -800.0], dtype=torch.float64, requires_grad=True)
    wanted = logp.detach() - torch.log(-torch.expm1(logp.detach()))
    close(log_odds(logp), wanted)
    close(torch.autograd.grad(log_odds(logp).sum(), logp)[0], -1 / torch.expm1(logp.detach()))
    certain = torch.zeros(1, dtype=torch.float32, requires_grad=True)
    assert log_odds(certain).isfinite().all()


def test_half_precision_is_compared_in_float32() -> None:
    case = compared()
    with_reference(case)
    head, hidden = case.outputs.head.bfloat16(), case.outputs.hidden.detach().bfloat16()  # type: ignore[attr-defined]
    assert Dpo().build(GIVEN)(Outputs(hidden, head), case.batch)["loss"][0].dtype == torch.float32
