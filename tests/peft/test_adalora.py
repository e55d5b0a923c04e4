from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model
from torch import nn
from toy_job import toy_job, train, weights

from llmfactory.core.context import CausalMask, Context, Record
from llmfactory.core.errors import ConfigError
from llmfactory.model.initialize import initialize
from llmfactory.peft.active import without_adapters
from llmfactory.peft.adalora import AdaloraAdapter, ranks
from llmfactory.peft.part import adapters
from llmfactory.peft.spec import Adalora

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SPEC = Adalora(rank=4, target_rank=2, alpha=6.0, total_steps=12, first_steps=2, last_steps=3, interval=2)
TAKEN = torch.tensor(True)
NEEDY = "blocks.1.ffn.down"


def ours(tmp_path: Any, spec: Adalora = SPEC) -> Any:
    model = toy_job(tmp_path).model.build()
    spec.apply(model)
    initialize(model, 3)
    return model.double()


class Theirs(nn.Module):
    """Linear maps of the same shapes under the same names, for `peft` to stand beside."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear):
                self.add_module(path.replace(".", "_"), nn.Linear(module.in_features, module.out_features, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def theirs(model: Any) -> Any:
    settings = {"init_r": 4, "target_r": 2, "lora_alpha": 6, "tinit": 2, "tfinal": 3, "deltaT": 2, "total_step": 12}
    config = AdaLoraConfig(**settings, target_modules=".*blocks.*", orth_reg_weight=SPEC.orthogonality)
    return get_peft_model(Theirs(model), config).double()


def beside(model: Any, wrapped: Any) -> list[tuple[AdaloraAdapter, dict[str, nn.Parameter]]]:
    """Each adapter of ours with the parameters of theirs in its place."""
    found = dict(wrapped.base_model.model.named_modules())
    pairs = []
    for path, adapter in adapters(model):
        layer = found[path.partition(".adapters.")[0].replace(".", "_")]
        pairs.append((adapter, {"a": layer.lora_A["default"], "b": layer.lora_B["default"], "e": layer.lora_E["default"]}))
    return pairs


def test_what_is_kept_is_what_peft_keeps(tmp_path: Any) -> None:
    """The same weights and the same gradients, step after step."""
    model = ours(tmp_path)
    wrapped = theirs(model)
    pairs, generator = beside(model, wrapped), torch.Generator().manual_seed(0)
    for step in range(14):
        for adapter, parameters in pairs:
            for name, parameter in parameters.items():
                value, gradient = (torch.randn(parameter.shape, generator=generator, dtype=torch.float64) for _ in range(2))
                own = adapter.get_parameter(name)
                own.data, own.grad = value.reshape(own.shape).clone(), gradient.reshape(own.shape).clone()
                parameter.data, parameter.grad = value, gradient
        SPEC.stepped(model, step, TAKEN)
        wrapped.base_model.update_and_allocate(step)
        for adapter, parameters in pairs:
            assert torch.equal(adapter.e.data, parameters["e"].data[:, 0]), step
    assert sum(ranks(model).values()) == 2 * len(pairs)


def test_the_term_is_that_of_peft(tmp_path: Any) -> None:
    model = ours(tmp_path)
    pairs = beside(model, theirs(model))
    for adapter, parameters in pairs:
        for name in "ab":
            parameters[name].data = adapter.get_parameter(name).data
    distances = [torch.norm(w @ w.T - torch.eye(4)) for _, parameters in pairs for w in (parameters["a"], parameters["b"].T)]
    want = SPEC.orthogonality * sum(distances) / len(distances)
    tokens = torch.arange(12).view(2, 6)
    record = Record()
    model(tokens, Context(torch.arange(6).expand(2, 6), CausalMask(6, tokens.device), record=record))
    assert model.terms == ("orthogonality",)
    torch.testing.assert_close(record.sums["orthogonality"] / 12, want)
    with without_adapters(model):
        off = Record()
        model(tokens, Context(torch.arange(6).expand(2, 6), CausalMask(6, tokens.device), record=off))
    assert "orthogonality" not in off.sums, "what is switched off is not trained"


def test_the_term_counts_once_however_the_step_is_cut(tmp_path: Any) -> None:
    job = toy_job(tmp_path, peft=SPEC, trainer__max_steps=3, trainer__eval_every=None, trainer__save_every=None)
    (_, whole), (_, cut) = (
        train(job, tmp_path / "whole"),
        train(
            toy_job(
                tmp_path,
                peft=SPEC,
                trainer__max_steps=3,
                trainer__eval_every=None,
                trainer__save_every=None,
                trainer__micro_batch_size=3,
            ),
            tmp_path / "cut",
        ),
    )
    for step, row in whole.rows.items():
        for name in ("loss", "orthogonality", "grad_norm"):
            assert cut.rows[step][name] == pytest.approx(row[name], rel=1e-4), (step, name)


def test_change_and_forward_agree(tmp_path: Any) -> None:
    linear = ours(tmp_path).blocks[0].attention.q
    adapter = linear.adapters["default"]
    with torch.no_grad():
        adapter.e.normal_()
    x = torch.randn(3, 16, dtype=torch.float64)
    change = 6.0 / 4 * adapter.b @ torch.diag(adapter.e) @ adapter.a
    torch.testing.assert_close(linear(x), x @ (linear.weight + change).T)
    torch.testing.assert_close(adapter.matrix(linear.weight), linear.weight + change)
    torch.testing.assert_close(adapter.restored(adapter.matrix(linear.weight)), linear.weight)


def test_rank_moves_to_the_layers_that_need_it(tmp_path: Any) -> None:
    """Only one map's matrix has to change, so its triplets stay and those of the others go."""
    torch.manual_seed(0)
    spec = Adalora(rank=4, target_rank=1, total_steps=50, first_steps=10, last_steps=10, orthogonality=0.1)
    model = toy_job(tmp_path).model.build()
    spec.apply(model)
    initialize(model, 3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad and name not in model.added and parameter.dim() == 2:
                parameter.mul_(15)  # so that every map matters
    wanted = copy.deepcopy(model)
    with torch.no_grad():
        weight = wanted.get_submodule(NEEDY).weight
        weight.add_(weight.std() * torch.randn(weight.shape[0], 4) @ torch.randn(4, weight.shape[1]))
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr=3e-2)
    context = Context(torch.arange(16).expand(8, 16), CausalMask(16, torch.device("cpu")))
    for step in range(50):
        tokens = torch.randint(0, 257, (8, 16))
        optimizer.zero_grad()
        record = Record()
        hidden = model(tokens, context.with_(record=record))
        missed = (hidden - wanted(tokens, context).detach()).square().mean()
        (missed + record.sums["orthogonality"] / tokens.numel()).backward()
        optimizer.step()
        spec.stepped(model, step, TAKEN)
    found = ranks(model)
    assert sum(found.values()) == len(found)
    assert found.pop(NEEDY) == 4
    assert max(found.values()) < 4


def test_a_step_that_was_left_out_teaches_nothing(tmp_path: Any) -> None:
    model = ours(tmp_path)
    _, adapter = next(adapters(model))
    for name in "abe":
        parameter = adapter.get_parameter(name)
        parameter.grad = torch.full_like(parameter, torch.inf)
    SPEC.stepped(model, 0, torch.tensor(False))
    assert not adapter.a_sensitivity.any()
    assert not adapter.b_uncertainty.any()


def test_a_run_that_goes_on_is_the_unbroken_one(tmp_path: Any) -> None:
    """State of the choice is in its checkpoints."""
    whole = weights(train(toy_job(tmp_path, peft=SPEC, trainer__max_steps=8), tmp_path / "whole")[0])
    train(toy_job(tmp_path, peft=SPEC, trainer__max_steps=4), tmp_path / "parts")
    parts = weights(train(toy_job(tmp_path, peft=SPEC, trainer__max_steps=8), tmp_path / "parts")[0])
    assert all(weight.any() for name, weight in whole.items() if name.endswith("e_sensitivity"))
    assert not all(weight.all() for name, weight in whole.items() if name.endswith(".kept"))
    assert all(torch.equal(parts[name], weight) for name, weight in whole.items())


def test_budget() -> None:
    """Zhang et al. 2023, equation 12: cubic between the first and the last steps."""
    budgets = [SPEC.budget(step, 10) for step in range(14)]
    assert budgets[:3] == [40, 40, 40]
    assert budgets[9:] == [20] * 5
    assert budgets[5] == int(20 + 20 * (1 - 3 / 7) ** 3)
    assert budgets == sorted(budgets, reverse=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"target_rank": 20}, "more than each map"), ({"first_steps": 400, "last_steps": 100}, "leave no step")],
)
def test_what_cannot_be(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Adalora(**changes)
