"""Steps of a solution: labels at their last tokens, against the definitions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from judged import close, found, gradient, judged

from llmfactory.objective.reward_spec import StepLoss
from llmfactory.objective.spec import Process

NAN = float("nan")
SIZES = [[6], [4], [5]]
STEPS = {(0, 2): 1.0, (0, 5): 0.0, (1, 3): -1.0}


def case():
    outputs, batch = judged(SIZES, pooling=None)
    batch["rewards"] = torch.full(batch["tokens"].shape, NAN)
    for place, score in STEPS.items():
        batch["rewards"][place] = score
    return outputs, batch


def test_binary():
    outputs, batch = case()
    z = torch.stack([outputs.head(outputs.hidden[place])[0] for place in STEPS])
    ours = found(Process().build(), outputs, batch)
    want = F.cross_entropy(torch.stack([torch.zeros_like(z), z], 1), torch.tensor([1, 0, 0]))  # two classes, as TRL's trainer
    close(ours["loss"], want)
    close(gradient(outputs, ours["loss"]), gradient(outputs, want))
    close(ours["accuracy"], ((z > 0) == torch.tensor([True, False, False])).double().mean())
    close(ours["reward"], z.mean())
    lenient = found(Process(threshold=-0.5).build(), outputs, batch)
    with torch.no_grad():
        outputs.head.bias += 0.7 - z[1]  # between 0 and the threshold of the next one: the logit of a step that is right
    strict = found(Process(threshold=0.9).build(), outputs, batch)
    close(strict["accuracy"], (z + 0.7 - z[1] > 0).eq(torch.tensor([True, False, False])).double().mean())
    with torch.no_grad():
        outputs.head.bias -= 0.7 - z[1]
    close(lenient["loss"], F.binary_cross_entropy_with_logits(z, torch.tensor([1.0, 1.0, 0.0]).double()))


def test_squared():
    outputs, batch = case()
    z = torch.stack([outputs.head(outputs.hidden[place])[0] for place in STEPS])
    ours = found(Process(loss=StepLoss.squared, threshold=0.5).build(), outputs, batch)
    close(ours["loss"], (z - torch.tensor([1.0, 0.0, -1.0])).square().mean())
    close(ours["accuracy"], ((z > 0.5) == torch.tensor([True, False, False])).double().mean())
    with torch.no_grad():
        outputs.head.bias += 0.3 - z[0]  # above 0, and below the threshold: the score of a step that is wrong
    again = found(Process(loss=StepLoss.squared, threshold=0.5).build(), outputs, batch)
    close(again["accuracy"], (z + 0.3 - z[0] > 0.5).eq(torch.tensor([True, False, False])).double().mean())


def test_what_is_no_step_counts_nothing():
    outputs, batch = case()
    objective = Process().build()
    before = objective.denominators(batch)["loss"]
    assert int(before) == 3
    batch["rewards"][2, 0] = float("inf")
    batch["rewards"][1, 5] = 1.0  # padding
    assert int(objective.denominators(batch)["loss"]) == 3
    filling = {**batch, "labels": batch["labels"].index_fill(0, torch.tensor([0]), -100)}
    assert int(objective.denominators(filling)["loss"]) == 1, "a row of which nothing is learned fills a place"
    batch["rewards"].fill_(NAN)
    (total, count) = objective(outputs, batch)["loss"]
    assert (float(total.detach()), int(count)) == (0.0, 0)
    assert gradient(outputs, total).abs().sum() == 0
