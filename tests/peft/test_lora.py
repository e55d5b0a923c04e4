from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from plain_model import GPT2, LLAMA, MOE, filled, logits, moved, trained
from toy_job import toy_job, train

from llmfactory.core.errors import UserError
from llmfactory.optim.groups import FACTOR
from llmfactory.peft.active import base_stays
from llmfactory.peft.lora import LoraAdapter, Orthonormal, StackLora
from llmfactory.peft.lora_spec import Start
from llmfactory.peft.part import adapters, changing
from llmfactory.peft.spec import Dora, Lora
from llmfactory.run.fit import build_stage


def effective(model: torch.nn.Module, overrides: list[str]) -> torch.nn.Module:
    """A plain model whose matrices are W + s B A, from the definition."""
    plain = filled(overrides)
    values = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(values[name])
        for path, adapter in adapters(model):
            if isinstance(adapter, LoraAdapter):
                matrix = plain.get_parameter(path.replace(".adapters.default", ".weight"))
                matrix += adapter.scale * torch.einsum("or,ri->oi", adapter.b, adapter.a)
            if isinstance(adapter, StackLora):
                stack = plain.get_parameter(path.replace(".adapters.default", ""))
                stack += adapter.scale * torch.einsum("eor,eri->eoi", adapter.b, adapter.a)
    return plain


@pytest.mark.parametrize("overrides", [GPT2, LLAMA, MOE], ids=["gpt2", "llama", "moe"])
def test_it_is_the_sum_of_two_matrices(overrides: list[str]) -> None:
    spec = Lora(rank=3, alpha=4.5)
    before, model = filled(overrides), filled(overrides, spec)
    torch.testing.assert_close(logits(model), logits(before), rtol=0, atol=0)
    moved(model)
    assert (logits(model) - logits(before)).abs().max() > 1e-3
    torch.testing.assert_close(logits(model), logits(effective(model, overrides)), rtol=1e-10, atol=1e-12)
    assert trained(model) == {name for name in dict(model.named_parameters()) if ".adapters." in name} == model.added
    assert model.borrowed == {name for name, _ in before.named_parameters()}


def test_alpha_and_rank_stabilized_scale_it() -> None:
    assert Lora(rank=4, alpha=6.0).scale == 1.5
    assert Lora(rank=4, alpha=6.0, rank_stabilized=True).scale == 3.0


def test_dropout_in_training_only() -> None:
    model = moved(filled(LLAMA, Lora(rank=2, dropout=0.5)))
    assert not torch.equal(logits(model), logits(model))
    model.eval()
    torch.testing.assert_close(logits(model), logits(effective(model, LLAMA)), rtol=1e-10, atol=1e-12)
    moe = moved(filled(MOE, Lora(rank=2, dropout=0.5, targets=["experts.up"])))
    assert not torch.equal(logits(moe), logits(moe))
    moe.eval()
    torch.testing.assert_close(logits(moe), logits(effective(moe, MOE)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "spec", [Lora(rank=3, alpha=6.0, dropout=0.5), Dora(rank=3, alpha=6.0, dropout=0.5)], ids=["lora", "dora"]
)
def test_what_is_dropped_is_dropped_from_the_input_of_the_change_alone(spec: Lora | Dora) -> None:
    """Hu et al. 2022 as peft has it: W sees all of x."""
    linear = moved(filled(LLAMA, spec)).get_submodule("blocks.1.ffn.up")
    (adapter,) = linear.adapters.values()  # type: ignore[union-attr,operator]
    x = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    torch.manual_seed(2)
    found = linear(x)
    torch.manual_seed(2)
    want = x @ linear.weight.T + 2.0 * F.dropout(x, 0.5) @ adapter.a.T @ adapter.b.T  # type: ignore[union-attr]
    if isinstance(spec, Dora):
        norm = (linear.weight + 2.0 * adapter.b @ adapter.a).norm(dim=1)  # type: ignore[operator]
        want = want * adapter.magnitude / norm
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("start", list(Start))
def test_it_starts_at_the_base(start: Start) -> None:
    before, model = filled(LLAMA), filled(LLAMA, Lora(rank=4, start=start))
    torch.testing.assert_close(logits(model), logits(before), rtol=1e-9, atol=1e-12)
    assert base_stays(model) is (start is not Start.pissa)
    first = next(adapter.a for _, adapter in adapters(model) if isinstance(adapter, LoraAdapter))
    if start is Start.gaussian:
        assert 0.15 < first.std() < 0.4  # 1 / rank
    if start is Start.default:
        assert 0.8 * 12**-0.5 < first.abs().max() <= 12**-0.5
    if start is Start.orthogonal:
        torch.testing.assert_close(first @ first.T, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-6)


def test_pissa_takes_the_first_singular_vectors() -> None:
    before, model = filled(LLAMA), filled(LLAMA, Lora(rank=4, alpha=6.0, start=Start.pissa))
    for name, (adapter,) in changing(model).items():
        whole, rest = before.get_parameter(name), model.get_parameter(name)
        s = torch.linalg.svdvals(whole)
        torch.testing.assert_close(torch.linalg.svdvals(rest)[: len(s) - 4], s[4:], rtol=1e-8, atol=1e-12)
        taken = 1.5 * adapter.b @ adapter.a
        torch.testing.assert_close(torch.linalg.svdvals(taken)[:4], s[:4], rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(adapter.a.norm(dim=1), adapter.b.norm(dim=0), rtol=1e-8, atol=1e-12)


def test_a_rank_above_that_of_a_matrix() -> None:
    before, model = filled(LLAMA), filled(LLAMA, Lora(rank=14, start=Start.pissa, targets=["attention.k"]))
    torch.testing.assert_close(logits(model), logits(before), rtol=1e-9, atol=1e-12)


def test_orthonormal_columns_of_a_long_matrix() -> None:
    long = torch.empty(5, 3)
    Orthonormal().fill(long, torch.Generator().manual_seed(0))
    torch.testing.assert_close(long.T @ long, torch.eye(3), rtol=0, atol=1e-6)


def test_targets_are_patterns() -> None:
    model = filled(LLAMA, Lora(targets=["q", "re:blocks[.]1[.]ffn[.].*"]))
    assert {path.partition(".adapters")[0] for path, _ in adapters(model)} == {
        *(f"blocks.{layer}.attention.q" for layer in (0, 1)),
        *(f"blocks.1.ffn.{name}" for name in ("gate", "up", "down")),
    }


def test_a_stack_of_experts_begins_with_random_numbers() -> None:
    with pytest.raises(UserError, match=r"peft\.start=default"):
        filled(MOE, Lora(start=Start.pissa))


def test_nothing_is_dropped_where_the_matrix_alone_is_used() -> None:
    lstm = [
        "model=lstm_tiny",
        "model.vocab_size=257",
        "model.dim=12",
        "model.n_layers=2",
        "model.max_positions=16",
        "data.seq_len=16",
    ]
    with pytest.raises(UserError, match=r"peft\.dropout=0"):
        filled(lstm, Lora(dropout=0.1))
    model = moved(filled(lstm, Lora(rank=2)))
    torch.testing.assert_close(logits(model), logits(effective(model, lstm)), rtol=1e-10, atol=1e-12)


def test_mamba_uses_matrices_of_its_own() -> None:
    mamba = [
        "model=mamba_tiny",
        "model.vocab_size=257",
        "model.dim=12",
        "model.n_layers=2",
        "model.max_positions=16",
        "data.seq_len=16",
    ]
    model = moved(filled(mamba, Lora(rank=2)))
    torch.testing.assert_close(logits(model), logits(effective(model, mamba)), rtol=1e-10, atol=1e-12)


def test_b_may_learn_faster(tmp_path: Path) -> None:
    """LoRA+."""
    job = toy_job(tmp_path, peft=Lora(rank=2, b_lr_ratio=4.0, train=["norm"]), optim__weight_decay=0.0)
    stage = build_stage(job, isolated=True)
    names = {id(parameter): name for name, parameter in stage.model.named_parameters()}
    by_factor: dict[float, set[str]] = {}
    for group in stage.configure_optimizers().param_groups:
        found = by_factor.setdefault(group[FACTOR], set())
        found |= {names[id(one)].rpartition(".")[2] for one in group["params"]}
    assert by_factor == {1.0: {"a", "weight"}, 4.0: {"b"}}


def test_the_base_has_neither_gradients_nor_state(tmp_path: Path) -> None:
    fitted, _ = train(toy_job(tmp_path, peft=Lora(rank=2), trainer__max_steps=2), tmp_path)
    assert all(parameter.grad is None for name, parameter in fitted.model.named_parameters() if ".adapters." not in name)
    stage = build_stage(toy_job(tmp_path, peft=Lora(rank=2)), isolated=True)
    held = {id(one) for group in stage.configure_optimizers().param_groups for one in group["params"]}
    assert held == {id(one) for name, one in stage.model.named_parameters() if ".adapters." in name}


def test_what_is_wrong_alone() -> None:
    good = Lora()
    for wrong in ({"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": []}, {"b_lr_ratio": 0.0}):
        with pytest.raises(ValueError):
            dataclasses.replace(good, **wrong)
