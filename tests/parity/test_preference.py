"""Losses of preferences and their gradients beside TRL's, on the same logits.

TRL's own functions run on stubs of its trainers: DPO, IPO, the hinge and KTO stand in `trl.trainer`, ORPO, CPO and SimPO in
`trl.experimental`. What TRL asks of a model is answered from the logits of our rows.
"""

from __future__ import annotations

import importlib
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

sys.path.insert(0, str(Path(__file__).parents[1] / "objective"))

from compared import Case, compared, with_reference
from judged import found

from llmfactory.core.batch import IGNORE, SURVEY
from llmfactory.objective.preference_spec import Cpo, Dpo, Ipo, Kto, Orpo, Reference, Simpo, Slic

SAME = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-8)
GIVEN = Reference.precomputed
ONE_TOKEN = [(1, [4, 2]), (1, [1, 5]), (1, [3, 3])]
"""Prompts of one token, which nobody predicts: ORPO's likelihood is of prompt and answer in TRL, of the answer here."""


class Padded:
    """The answers as TRL has them: all chosen ones, then all rejected ones."""

    def __init__(self, case: Case) -> None:
        documents = sorted(case.documents(), key=lambda one: one[0])
        self.ids = pad_sequence([ids for _, _, ids, _ in documents], batch_first=True)
        self.real = pad_sequence([torch.ones_like(ids) for _, _, ids, _ in documents], batch_first=True)
        self.answer = pad_sequence(
            [(torch.arange(len(ids)) >= prompt).long() for _, prompt, ids, _ in documents], batch_first=True
        )
        logits = pad_sequence([logits for *_, logits in documents], batch_first=True)
        self.logits = torch.nn.functional.pad(logits, (0, 0, 0, self.ids.shape[1] - logits.shape[1]))

    @property
    def labels(self) -> Tensor:
        return self.ids.masked_fill(self.answer == 0, IGNORE)

    def model(self, **asked: Any) -> SimpleNamespace:
        """What TRL's fused head says."""
        labels = asked["labels"][:, 1:]
        kept, logp = labels != -100, self.logits[:, :-1].log_softmax(-1)
        logps = logp.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * kept
        nothing = torch.zeros_like(logps)
        return SimpleNamespace(log_probs=logps, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def trainer(**fields: Any) -> SimpleNamespace:
    """A stub of a trainer of TRL in evaluation, on one process."""
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    common = {"aux_loss_enabled": False, "is_encoder_decoder": False, "label_smoothing": 0.0, "precompute_ref_logps": True}
    return SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=accelerator,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        **{**common, **fields},
    )


def compare(case: Case, objective: Any, theirs: Tensor) -> dict[str, Tensor]:
    values = found(objective, case.outputs, case.batch)
    ours = sum(values[name] for name in objective.terms)
    SAME(ours, theirs.to(ours.dtype))
    leaves = [case.outputs.hidden, case.outputs.head.weight, case.outputs.head.bias]
    for one, other in zip(*(torch.autograd.grad(loss, leaves, retain_graph=True) for loss in (ours, theirs)), strict=True):
        SAME(one, other)
        assert one.any()
    return values


@pytest.mark.parametrize(
    ("spec", "loss_type", "settings"),
    [
        (Dpo(beta=0.3), "sigmoid", {}),
        (Dpo(beta=0.3, label_smoothing=0.2, robust=True), "robust", {"label_smoothing": 0.2}),
        (Ipo(beta=0.3), "ipo", {}),
        (Slic(beta=0.3), "hinge", {}),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_dpo_and_its_relatives(spec: Any, loss_type: str, settings: dict[str, Any]) -> None:
    peer = importlib.import_module("trl.trainer.dpo_trainer").DPOTrainer
    case = compared()
    known, padded = with_reference(case), Padded(case)
    stub = trainer(
        beta=0.3,
        loss_types=[loss_type],
        loss_weights=[1.0],
        ld_alpha=None,
        use_weighting=False,
        f_divergence_type="reverse_kl",
        **settings,
    )
    inputs = {
        "input_ids": padded.ids,
        "attention_mask": padded.real,
        "completion_mask": padded.answer,
        "ref_chosen_logps": known[:, 0],
        "ref_rejected_logps": known[:, 1],
    }
    values = compare(case, spec.build(GIVEN), peer._compute_loss(stub, padded.model, inputs, False))
    told = stub._metrics["eval"]
    if loss_type != "ipo":  # whose rewards TRL does not divide by tokens
        for ours, theirs in (
            ("reward_chosen", "rewards/chosen"),
            ("margin", "rewards/margins"),
            ("accuracy", "rewards/accuracies"),
        ):
            assert values[ours].item() == pytest.approx(told[theirs][0], rel=1e-6)
    assert values["logp_rejected"].item() == pytest.approx(told["logps/rejected"][0], rel=1e-6)


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        (
            Cpo(beta=0.3, nll=0.7, label_smoothing=0.1),
            {"loss_type": "sigmoid", "beta": 0.3, "cpo_alpha": 0.7, "label_smoothing": 0.1},
        ),
        (Simpo(beta=2.5, gamma=0.8), {"loss_type": "simpo", "beta": 2.5, "cpo_alpha": 0.0, "simpo_gamma": 0.8}),
        (Slic(beta=0.3, nll=0.7), {"loss_type": "hinge", "beta": 0.3, "cpo_alpha": 0.7}),
        (Orpo(beta=0.3), {"beta": 0.3}),
    ],
    ids=["cpo", "simpo", "slic", "orpo"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_those_without_a_reference(spec: Any, settings: dict[str, Any]) -> None:
    name = "orpo" if isinstance(spec, Orpo) else "cpo"
    module = importlib.import_module(f"trl.experimental.{name}.{name}_trainer")
    peer = getattr(module, f"{name.upper()}Trainer")
    case = compared(ONE_TOKEN)
    padded = Padded(case)
    stub = trainer(alpha=0.0, padding_value=0, pad_token_id=0, **settings)
    for method in ("concatenated_forward", f"{'odds_ratio' if name == 'orpo' else 'cpo'}_loss"):
        setattr(stub, method, partial(getattr(peer, method), stub))
    stub.get_batch_logps = peer.get_batch_logps
    stub.concatenated_inputs = lambda *_, **__: {
        "concatenated_input_ids": padded.ids,
        "concatenated_attention_mask": padded.real,
        "concatenated_labels": padded.labels,
    }
    pairs = len(ONE_TOKEN)
    batch = {"chosen_labels": padded.labels[:pairs]}
    loss, told = peer.get_batch_loss_metrics(stub, lambda *_, **__: SimpleNamespace(logits=padded.logits), batch, "eval")
    values = compare(case, spec.build(), loss)
    assert values["accuracy"].item() == pytest.approx(float(told["eval_rewards/accuracies"]))
    if not isinstance(spec, Slic):
        assert values["margin"].item() == pytest.approx(float(told["eval_rewards/margins"]), rel=1e-6)


@pytest.mark.parametrize("far", [4.0, -4.0])
def test_kto(far: float) -> None:
    """With the mean log-ratio of the mismatched answers above and below zero."""
    peer = importlib.import_module("trl.trainer.kto_trainer").KTOTrainer
    case, other = compared([(3, [4]), (1, [5]), (2, [3]), (4, [2])]), compared([(2, [3]), (1, [2]), (4, [1]), (2, [2])], seed=9)
    other.outputs.head.load_state_dict(case.outputs.head.state_dict())  # type: ignore[attr-defined]
    make = torch.Generator().manual_seed(2)
    known = case.sums().detach()[:, 0] + 4 * torch.randn(4, generator=make, dtype=torch.float64)
    others = other.sums().detach()[:, 0] - far - torch.randn(4, generator=make, dtype=torch.float64)
    labels = torch.tensor([1, 0, 0, 1])
    padded, mixed = Padded(case), Padded(other)
    stub = trainer(beta=0.3, loss_type="kto", desirable_weight=1.2, undesirable_weight=0.8, calculate_KL=True)
    stub._compute_kl_logps = partial(peer._compute_kl_logps, stub)

    def model(**asked: Any) -> SimpleNamespace:
        return (mixed if asked["input_ids"] is mixed.ids else padded).model(**asked)

    inputs = {
        "input_ids": padded.ids,
        "attention_mask": padded.real,
        "completion_mask": padded.answer,
        "KL_input_ids": mixed.ids,
        "KL_attention_mask": mixed.real,
        "KL_completion_mask": mixed.answer,
        "label": labels.bool(),
        "ref_logps": known,
        "ref_KL_logps": others,
    }
    loss = peer._compute_loss(stub, model, inputs, False)
    gap = (other.sums()[:, 0] - others).sum().detach()
    survey = torch.stack((gap, torch.tensor(4.0, dtype=torch.float64)))
    case.batch |= {"label": labels, "reference_logps": torch.stack((known, others), 1), SURVEY: survey.expand(4, 2)}
    values = compare(case, Kto(beta=0.3, wanted=1.2, unwanted=0.8).build(GIVEN), loss)
    assert values["kl"].item() == pytest.approx(stub._metrics["eval"]["kl"][0], rel=1e-6)
    assert (values["kl"] > 0) == (far > 0)
    assert values["reward_wanted"].item() == pytest.approx(stub._metrics["eval"]["rewards/chosen"][0], rel=1e-6)
