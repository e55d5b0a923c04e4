"""Policies: the loss against the papers' sums, written as loops over answers and tokens, and against TRL's own."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer

from llmfactory.core.batch import IGNORE, split
from llmfactory.model.head.lm import OwnHead
from llmfactory.model.head.spec import Lm
from llmfactory.objective.actor_critic import ActorCriticObjective, Valued
from llmfactory.objective.causal import CausalObjective
from llmfactory.objective.objective import Outputs
from llmfactory.objective.policy import PolicyObjective, token_weights
from llmfactory.objective.policy_spec import ActorCritic, Aggregation, Policy

N, T, V, D, MOST = 4, 6, 11, 5, 5
SPANS = [(2, 6), (1, 2), (0, 5), (3, 3)]
"""First token and the one behind the last of each answer; the last answer is masked out as a whole."""


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def head() -> OwnHead:
    made = Lm(tied=False).build(V, D, None, 0.5, None)  # type: ignore[arg-type]
    assert isinstance(made, OwnHead)
    made.weight = torch.nn.Parameter(numbers(V, D, seed=1))
    return made


def batch(aggregation: Aggregation = Aggregation.token) -> dict[str, Tensor]:
    kept = torch.tensor([[first <= t < stop for t in range(T)] for first, stop in SPANS])
    labels = torch.randint(V, (N, T), generator=torch.Generator().manual_seed(2))
    logps = -1.5 + 0.4 * numbers(N, T, seed=3)
    return {
        "labels": labels.where(kept, IGNORE),
        "advantages": numbers(N, 1, seed=4) * kept,
        "weights": token_weights(aggregation, kept, MOST),
        "old_logps": logps * kept,
        "reference_token_logps": (logps + 0.2 * numbers(N, T, seed=5)) * kept,
        "old_values": numbers(N, T, seed=6) * kept,
        "returns": numbers(N, T, seed=7) * kept,
    }


def loss_of(objective: PolicyObjective, outputs: Outputs, rows: dict[str, Tensor]) -> Tensor:
    terms, counts = objective(outputs, rows), objective.denominators(rows)
    assert {name: float(count) for name, (_, count) in terms.items()} == {name: float(count) for name, count in counts.items()}
    assert set(terms) == {*objective.terms, *objective.watched}
    return sum((terms[name][0] / terms[name][1] for name in objective.terms), torch.zeros((), dtype=torch.float64))


def by_hand(rows: dict[str, Tensor], hidden: Tensor, weight: Tensor, spec: Policy) -> float:
    """Answer by answer, token by token."""
    answers, entropies = [], []
    for row, (first, stop) in enumerate(SPANS):
        losses = []
        for t in range(first, stop):
            logits = (weight @ hidden[row, t] / spec.temperature).tolist()
            normalizer = math.log(sum(math.exp(z) for z in logits))
            logp = logits[int(rows["labels"][row, t])] - normalizer
            entropies.append(-sum(math.exp(z - normalizer) * (z - normalizer) for z in logits))
            ratio, advantage = math.exp(logp - float(rows["old_logps"][row, t])), float(rows["advantages"][row, t])
            high = spec.clip_low if spec.clip_high is None else spec.clip_high
            loss = -min(advantage * ratio, advantage * min(max(ratio, 1 - spec.clip_low), 1 + high))
            gap = float(rows["reference_token_logps"][row, t]) - logp
            losses.append(loss + spec.kl_coef * (math.exp(gap) - gap - 1))
        if losses:
            answers.append(losses)
    tokens = [loss for losses in answers for loss in losses]
    total = {
        Aggregation.token: sum(tokens) / len(tokens),
        Aggregation.sequence: sum(sum(losses) / len(losses) for losses in answers) / len(answers),
        Aggregation.constant: sum(tokens) / (len(answers) * MOST),
        Aggregation.sum: sum(tokens) / len(answers),
    }[spec.aggregation]
    return total - spec.entropy_coef * sum(entropies) / len(entropies)


@pytest.mark.parametrize("aggregation", list(Aggregation))
@pytest.mark.parametrize(
    "options",
    [{}, {"kl_coef": 0.3}, {"clip_low": 0.1, "clip_high": 0.4}, {"entropy_coef": 0.2, "temperature": 0.7, "kl_coef": 0.1}],
    ids=str,
)
def test_the_loss_is_the_papers(aggregation: Aggregation, options: dict[str, float]) -> None:
    spec, rows, hidden, made = Policy(aggregation=aggregation, **options), batch(aggregation), numbers(N, T, D, seed=8), head()
    found = loss_of(PolicyObjective(spec), Outputs(hidden, made), rows)
    assert found.item() == pytest.approx(by_hand(rows, hidden, made.weight.detach(), spec), rel=1e-10)


@pytest.mark.parametrize("aggregation", list(Aggregation))
def test_rows_may_be_cut_up(aggregation: Aggregation) -> None:
    """Sums of pieces over the denominators of the whole: the loss, and its gradient, are the same."""
    objective, rows, made = PolicyObjective(Policy(aggregation=aggregation, kl_coef=0.2)), batch(aggregation), head()
    hidden = numbers(N, T, D, seed=8).requires_grad_()
    loss_of(objective, Outputs(hidden, made), rows).backward()
    whole, pieces = hidden.grad, torch.zeros(())
    counts = objective.denominators(rows)
    hidden.grad = None
    for piece in split({**rows, "hidden": hidden}, 1):
        terms = objective(Outputs(piece.pop("hidden"), made), piece)
        pieces = pieces + sum(terms[name][0] / counts[name] for name in objective.terms)
    pieces.backward()
    assert torch.allclose(hidden.grad, whole, rtol=1e-12)


def test_without_old_log_probabilities_the_policy_is_its_own() -> None:
    """The ratio is 1, and the gradient that of the plain policy gradient."""
    rows, made, hidden = batch(), head(), numbers(N, T, D, seed=8).requires_grad_()
    del rows["old_logps"]
    loss = loss_of(PolicyObjective(Policy(aggregation=Aggregation.token)), Outputs(hidden, made), rows)
    kept = rows["labels"] != IGNORE
    assert loss.item() == pytest.approx(-rows["advantages"][kept].mean().item())
    loss.backward()
    again = hidden.detach().clone().requires_grad_()
    (-(rows["advantages"] * made.log_probs(again, rows["labels"])).sum() / kept.sum()).backward()
    assert torch.allclose(hidden.grad, again.grad)


def test_what_is_watched() -> None:
    """Means over tokens, whatever weights their losses have: entropy, the share that is held back, and k3 of p_old || p and p || q."""
    spec, rows = Policy(kl_coef=0.3, clip_low=0.1, clip_high=0.3, temperature=0.7), batch(Aggregation.sequence)
    hidden, made, kept = numbers(N, T, D, seed=8), head(), rows["labels"] != IGNORE
    terms = PolicyObjective(spec)(Outputs(hidden, made), rows)
    logps = (hidden @ made.weight.detach().T / 0.7).log_softmax(-1)[kept]
    logp = logps.gather(1, rows["labels"][kept][:, None])[:, 0]
    old, other, advantages = (rows[name][kept] for name in ("old_logps", "reference_token_logps", "advantages"))
    ratio = (logp - old).exp()
    held = torch.where(advantages > 0, ratio > 1.3, ratio < 0.9)
    wanted = {
        "entropy": -(logps.exp() * logps).sum(1),
        "clipped": held.double(),
        "moved": ratio - 1 - (logp - old),
        "kl": (other - logp).exp() - 1 - (other - logp),
    }
    assert 0 < held.sum() < len(held)
    for name, values in wanted.items():
        assert float(terms[name][0] / terms[name][1]) == pytest.approx(float(values.mean())), name


def test_an_answer_that_was_better_becomes_likelier() -> None:
    rows, made, hidden = batch(), head(), numbers(N, T, D, seed=8).requires_grad_()
    del rows["old_logps"]
    loss_of(PolicyObjective(Policy()), Outputs(hidden, made), rows).backward()
    with torch.no_grad():
        change = made.log_probs(hidden - 1e-4 * hidden.grad, rows["labels"]) - made.log_probs(hidden, rows["labels"])
    assert (change * rows["advantages"]).sum() > 0


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "bnpo"])
def test_equal_to_trl(kind: str) -> None:
    """Loss and gradient on the same log-probabilities."""
    aggregation = {"grpo": Aggregation.sequence, "dr_grpo": Aggregation.constant, "bnpo": Aggregation.token}[kind]
    spec = Policy(aggregation=aggregation, clip_low=0.15, clip_high=0.28, kl_coef=0.07)
    rows, made = {name: field[:3] for name, field in batch(aggregation).items()}, head()
    ours, theirs = (numbers(3, T, D, seed=8).requires_grad_() for _ in range(2))
    loss = loss_of(PolicyObjective(spec), Outputs(ours, made), rows)
    loss.backward()
    mask = (rows["labels"] != IGNORE).double()
    logps, entropies = made.log_probs_and_entropy(theirs, rows["labels"])
    inputs = {
        "prompt_ids": torch.zeros(3, 0),
        "prompt_mask": torch.zeros(3, 0),
        "completion_ids": rows["labels"],
        "completion_mask": mask,
        "advantages": rows["advantages"].sum(1) / mask.sum(1),
        "old_per_token_logps": rows["old_logps"],
        "ref_per_token_logps": rows["reference_token_logps"],
    }
    reference = GRPOTrainer._compute_loss(_trainer(kind, spec, (logps, entropies, None)), None, inputs)
    reference.backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-10)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-10)


def _trainer(kind: str, spec: Policy, found: Any) -> Any:
    """What the method asks of its trainer."""
    accelerator = SimpleNamespace(
        gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, **_: x, num_processes=1, sync_gradients=True
    )
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: found,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=spec.kl_coef,
        epsilon_low=spec.clip_low,
        epsilon_high=spec.clip_high,
        loss_type=kind,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        use_vllm=False,
        model=SimpleNamespace(training=True),
        max_completion_length=MOST,
        current_gradient_accumulation_steps=1.0,
        _entropy_bonus_enabled=False,
        accelerator=accelerator,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
    )


def test_the_critic_s_loss_stands_beside_the_policy_s() -> None:
    rows, made, hidden = batch(), head(), numbers(N, T, D, seed=8)
    values, kept = numbers(N, T, seed=9), rows["labels"] != IGNORE
    found = loss_of(ActorCriticObjective(ActorCritic(value_coef=0.5, value_clip=0.3)), Valued(hidden, made, values=values), rows)
    policy = loss_of(PolicyObjective(Policy(aggregation=Aggregation.token)), Outputs(hidden, made), rows)
    losses = []
    for value, old, target in zip(*(x[kept].tolist() for x in (values, rows["old_values"], rows["returns"])), strict=True):
        near = old + min(max(value - old, -0.3), 0.3)
        losses.append(max((value - target) ** 2, (near - target) ** 2) / 2)
    assert found.item() == pytest.approx(policy.item() + 0.5 * sum(losses) / len(losses), rel=1e-10)
    spec = ActorCritic(value_coef=0.5, value_clip=0.3, entropy_coef=0.2)
    bonus = loss_of(ActorCriticObjective(spec), Valued(hidden, made, values=values), rows) - found
    entropy = made.log_probs_and_entropy(hidden, rows["labels"])[1][kept].mean()
    assert bonus.item() == pytest.approx(-0.2 * entropy.item())


def test_text_measures_it_as_a_language_model() -> None:
    assert isinstance(PolicyObjective(Policy()).plain(), CausalObjective)
