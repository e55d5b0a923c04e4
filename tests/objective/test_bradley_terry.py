"""Pairs: the loss against the papers' equations and TRL's trainer, and what is watched."""

from __future__ import annotations

import importlib
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from judged import close, found, gradient, judged, reward

from llmfactory.core.errors import ConfigError
from llmfactory.objective.spec import BradleyTerry

SIZES = [[4, 3], [2, 6], [5, 5], [2, 2]]
MARGIN = torch.tensor([1.5, float("nan"), 0.0, -0.5])


def case(sizes=SIZES):
    outputs, batch = judged(sizes)
    return outputs, {**batch, "margin": MARGIN[: len(sizes)]}


def rewards(outputs):
    return torch.stack([torch.stack([reward(outputs, SIZES, row, answer) for answer in range(2)]) for row in range(len(SIZES))])


def test_the_loss_is_the_papers():
    outputs, batch = case()
    r = rewards(outputs)
    plain = -torch.log(torch.sigmoid(r[:, 0] - r[:, 1])).mean()
    close(found(BradleyTerry().build(), outputs, batch)["loss"], plain)
    m = torch.tensor([1.5, 0.0, 0.0, -0.5], dtype=torch.float64)
    want = (-torch.log(torch.sigmoid(r[:, 0] - r[:, 1] - 0.7 * m)) + 0.3 * (r[:, 0] + r[:, 1]) ** 2).mean()
    objective = BradleyTerry(margin_scale=0.7, center=0.3).build()
    ours = found(objective, outputs, batch)["loss"]
    close(ours, want)
    close(gradient(outputs, ours), gradient(outputs, want))
    close(found(objective.plain(), outputs, batch)["loss"], plain)


def test_what_is_watched():
    outputs, batch = case()
    r = rewards(outputs)
    watched = found(BradleyTerry(margin_scale=1.0).build(), outputs, batch)
    close(watched["accuracy"], (r[:, 0] > r[:, 1]).double().mean())
    close(watched["margin"], (r[:, 0] - r[:, 1]).mean())
    close(watched["reward"], r.mean())
    assert not any(watched[name].requires_grad for name in ("accuracy", "margin", "reward"))
    torch.nn.init.zeros_(outputs.head.weight)
    close(found(BradleyTerry().build(), outputs, batch)["accuracy"], 0.5)


def test_the_loss_is_trl_s():
    """On the same rewards, with and without margins."""
    trainer = importlib.import_module("trl.trainer.reward_trainer").RewardTrainer
    outputs, batch = case()
    batch["margin"] = batch["margin"].nan_to_num(0.0)
    r = rewards(outputs)
    for margin_scale, center in ((0.0, 0.0), (1.0, 0.0), (1.0, 0.2)):
        accelerator = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)
        peer = SimpleNamespace(
            model=SimpleNamespace(training=False),
            args=SimpleNamespace(center_rewards_coefficient=center or None),
            accelerator=accelerator,
            _metrics=defaultdict(lambda: defaultdict(list)),
            _total_train_tokens=0,
        )
        inputs = {"margin": batch["margin"].double()} if margin_scale else {}
        theirs = trainer.compute_loss(peer, lambda **_: SimpleNamespace(logits=r.T.reshape(-1, 1)), inputs)
        ours = found(BradleyTerry(margin_scale=margin_scale, center=center).build(), outputs, batch)
        close(ours["loss"], theirs)
        close(gradient(outputs, ours["loss"]), gradient(outputs, theirs))
        close(ours["margin"], peer._metrics["eval"]["margin"][0])
        close(ours["accuracy"], peer._metrics["eval"]["accuracy"][0])


def test_rows_of_padding_count_nothing():
    outputs, batch = case()
    whole = found(BradleyTerry(margin_scale=1.0, center=0.1).build(), outputs, batch)
    more, padded = case([*SIZES, [1, 1], [0, 0]])
    padded["margin"] = torch.cat([MARGIN, torch.tensor([9.0, float("nan")])])
    more.hidden.data[: len(SIZES), : outputs.hidden.shape[1]] = outputs.hidden.data
    more.head.load_state_dict(outputs.head.state_dict())
    again = found(BradleyTerry(margin_scale=1.0, center=0.1).build(), more, padded)
    for name, value in whole.items():
        close(again[name], value)
    assert gradient(more, again["loss"])[len(SIZES) :].abs().sum() == 0


def test_answers_are_told_apart_however_far():
    """Differences of hundreds, as a reward model far off makes them, neither overflow nor vanish."""
    outputs, batch = case()
    outputs.hidden.data *= 1e4
    r = rewards(outputs)
    loss = found(BradleyTerry().build(), outputs, batch)["loss"]
    close(loss, F.softplus(r[:, 1] - r[:, 0]).mean())
    assert gradient(outputs, loss).isfinite().all()


def test_half_precision_is_compared_in_float32():
    outputs, batch = case()
    head, hidden = outputs.head.bfloat16(), outputs.hidden.detach().bfloat16()
    (total, _) = BradleyTerry().build()(type(outputs)(hidden, head), batch)["loss"]
    assert total.dtype == torch.float32


def test_weights_are_no_less_than_nothing():
    with pytest.raises(ConfigError, match="center = -1"):
        BradleyTerry(center=-1.0)
