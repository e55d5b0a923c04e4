"""The maximal update parametrization: its table, the form of it with factors in the forward pass, what activations do as a model grows,
and that the best learning rate stays where it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from llmfactory.config.compose import compose_job
from llmfactory.config.spec import Job
from llmfactory.core.context import CausalMask, Context
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.core.sharding import Parameter
from llmfactory.model.initialize import initialize
from llmfactory.model.skeleton import Skeleton
from llmfactory.optim.groups import FACTOR, set_lr
from llmfactory.optim.width.mup import scaled
from llmfactory.optim.width.spec import Mup
from llmfactory.stage.rates import rates

BASE = 16
SMALL = ["model.vocab_size=257", "model.n_layers=2", "model.max_positions=32", "data.seq_len=16", "model.init_std=0.25"]
MUP = ["optim/width=mup", "optim.width.base={dim: 16, attention.n_heads: 2, attention.n_kv_heads: 1, ffn.hidden: 24}"]


def job(width: int, *more: str, mup: bool = True) -> Job:
    """A model `width / BASE` times as wide as the base; its heads are as wide as the base's, and more."""
    heads = [f"model.attention.n_heads={width // 8}", f"model.attention.n_kv_heads={width // 16}"]
    sizes = [f"model.dim={width}", f"model.ffn.hidden={width * 3 // 2}"]
    return compose_job(["model=llama_tiny", *SMALL, *sizes, *heads, *(MUP if mup else []), *more]).job


def built(one: Job) -> tuple[Skeleton, dict[str, Parameter]]:
    model = one.model.build()
    declared = one.optim.width.declared(model, one.model)
    initialize(model, one.seed, declared=declared)
    return model, declared


def test_first_weights_rates_and_decays_follow_the_table() -> None:
    one = job(64, "optim.weight_decays={blocks.1.ffn: 0.3}", "optim.weight_decay=0.2")
    model, declared = built(one)
    found = rates(model, one.optim, declared)
    last = 0.25 / 2  # what writes to the residual stream of two layers
    for name, std, rate, decay in (
        ("embedding.weight", 0.25, 1.0, True),
        ("blocks.0.attention.q.weight", 0.25 / 2, 0.25, 0.8),
        ("blocks.0.attention.o.weight", last / 2, 0.25, 0.8),
        ("blocks.0.ffn.up.weight", 0.25 / 2, 0.25, 0.8),
        ("blocks.1.ffn.down.weight", last / 2, 0.25, 1.2),
        ("blocks.0.ffn_norm.weight", None, 1.0, False),
        ("head.weight", 0.25 / 4, 0.25, 0.8),
    ):
        weight = model.get_parameter(name)
        assert std is None or weight.std().item() == pytest.approx(std, rel=0.06), name
        assert declared[name].rate == found.factors.get(name, 1.0) == rate, name
        assert found.decays[name] == pytest.approx(decay), name
    groups = one.optim.build(found.groups(model.named_parameters())).param_groups
    shrinking = {round(group[FACTOR] * group["weight_decay"], 9) for group in groups}
    assert shrinking == {0.0, 0.2, 0.3}  # a step decays as much at every width


def test_the_base_itself_is_as_without_it() -> None:
    (model, declared), (same, _) = built(job(BASE)), built(job(BASE, mup=False))
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), same.parameters(), strict=True))
    assert {one.rate for one in declared.values()} == {1.0}


def step(model: Skeleton, optimizer: torch.optim.Optimizer, tokens: Tensor) -> float:
    length = tokens.shape[1] - 1
    context = Context(torch.arange(length).expand(len(tokens), length), CausalMask(length))
    logits = model.head(model(tokens[:, :-1], context))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def optimizer_of(one: Job, model: Skeleton, declared: Mapping[str, Parameter], lr: float) -> torch.optim.Optimizer:
    optimizer = one.optim.build(rates(model, one.optim, declared).groups(model.named_parameters()))
    set_lr(optimizer, lr)
    return optimizer


def batches(count: int, rows: int = 8) -> Tensor:
    """Rows in which a token mostly follows from the one before."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 64, (count, rows, 17), generator=random)
    for place in range(1, 17):
        follows = torch.rand(count, rows, generator=random) < 0.8
        tokens[:, :, place] = torch.where(follows, (tokens[:, :, place - 1] * 5 + 3) % 64, tokens[:, :, place])
    return tokens


def test_equals_the_form_with_factors_in_the_forward_pass() -> None:
    """Table 8: the head's weights begin and learn as the base's do, and its logits are multiplied by 1 / r."""
    more = ["optim.eps=1e-30", "optim.weight_decay=0"]
    (one, other), losses = (job(64, *more), job(64, *more, "model.head.scale=0.25")), []
    for which in (one, other):
        model, declared = built(which)
        model = model.double()
        if which is other:
            with torch.no_grad():
                model.get_parameter("head.weight").mul_(4.0)
        found = rates(model, which.optim, declared)
        factors = dict(found.factors) | ({"head.weight": 1.0} if which is other else {})
        found = type(found)(found.weight_decay, found.decays, factors)
        optimizer = which.optim.build(found.groups(model.named_parameters()))
        set_lr(optimizer, 0.01)
        losses.append([step(model, optimizer, tokens) for tokens in batches(4)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert len(set(losses[0])) == 4


def change_of_logits(width: int, mup: bool) -> float:
    """Root mean square of what four steps on a row change of the logits of what follows."""
    one, row = job(width, mup=mup), batches(1, rows=1)[0]
    model, declared = built(one)
    optimizer, found = optimizer_of(one, model, declared, 0.002), []
    context = Context(torch.arange(16).expand(1, 16), CausalMask(16))
    for number in range(5):
        if number in (0, 4):
            found.append(model.head(model(row[:, :-1], context)).detach().gather(-1, row[:, 1:, None]))
        step(model, optimizer, row)
    return float((found[1] - found[0]).square().mean().sqrt())


def test_logits_change_as_much_at_every_width() -> None:
    """The coordinate check of appendix D.1: with the standard parametrization they blow up as the model grows."""
    widths = (64, 128, 256)
    ours, standard = ([change_of_logits(width, mup) for width in widths] for mup in (True, False))
    assert max(ours) < 1.1 * min(ours), ours
    assert standard[-1] > 2 * standard[0], standard


TWO_HEADS = ["model.attention.n_heads=2", "model.attention.n_kv_heads=1"]
PARTS = ("embedding", "blocks.0", "blocks.1", "blocks.0.attention", "blocks.1.ffn")


def with_wide_heads(width: int, *more: str) -> Job:
    """Two heads at every width, so that they grow with the model."""
    return compose_job(
        ["model=llama_tiny", *SMALL, f"model.dim={width}", f"model.ffn.hidden={width * 3 // 2}", *TWO_HEADS, *more]
    ).job


def scale_that_a_rule_wants(width: int) -> str:
    with pytest.raises(ConfigError, match=r"model\.attention\.scale=") as caught:
        with_wide_heads(width, *MUP)
    return caught.value.problems[0].repair


def keep(seen: dict[str, Tensor], name: str, part: torch.nn.Module, given: Any, out: Tensor) -> None:
    seen[name] = out.detach()


def changes(width: int, factors: Mapping[str, float], mup: bool = True) -> dict[str, float]:
    """By part, how much four steps change what comes out of it (root mean square). `factors`: wrong multiples of rates."""
    one = with_wide_heads(width, *MUP, scale_that_a_rule_wants(width)) if mup else with_wide_heads(width)
    model, declared = built(one)
    for name, wrong in factors.items():
        for parameter in [key for key in declared if key.startswith(name) and not key.endswith("norm.weight")]:
            declared[parameter] = dataclasses.replace(declared[parameter], rate=declared[parameter].rate * wrong)
    optimizer, tokens = optimizer_of(one, model, declared, 0.01), batches(1, rows=4)[0]
    context, found = Context(torch.arange(16).expand(4, 16), CausalMask(16)), []
    for number in range(5):
        if number in (0, 4):
            seen: dict[str, Tensor] = {}
            hooks = [model.get_submodule(name).register_forward_hook(partial(keep, seen, name)) for name in PARTS]
            logits = model.head(model(tokens[:, :-1], context)).detach()
            found.append(seen | {"logits": logits.gather(-1, tokens[:, 1:, None])})
            for hook in hooks:
                hook.remove()
        step(model, optimizer, tokens)
    return {name: float((found[1][name] - found[0][name]).square().mean().sqrt()) for name in found[0]}


def largest_spread(widths: tuple[int, ...], factors: Any = lambda grown: {}, mup: bool = True) -> float:
    found = [changes(width, factors(width / BASE), mup) for width in widths]
    return max(max(one[name] for one in found) / min(one[name] for one in found) for name in found[0])


def test_all_activations_change_as_much_at_every_width() -> None:
    assert largest_spread((32, 64, 128, 256)) < 1.3
    assert largest_spread((32, 256), mup=False) > 20


@pytest.mark.parametrize("wrong", ["head", "embedding", "blocks"])
def test_one_wrong_rate_is_seen(wrong: str) -> None:
    """What the standard parametrization, or another table, would have learned at."""
    assert largest_spread((32, 256), lambda grown: {wrong: 1 / grown if wrong == "embedding" else grown}) > 1.4


def test_scores_of_queries_that_point_along_keys_stay_as_they_are() -> None:
    """Of d numbers of a size each: they grow with d, not with its root."""
    for width in (32, 64, 256):
        found = float(scale_that_a_rule_wants(width).partition("=")[2])
        assert found * (width / 2) == pytest.approx((BASE / 2) ** -0.5 * (BASE / 2), rel=1e-6)


def best_power(width: int) -> int:
    """Of two, at which a model learns most in some steps."""
    one, data, losses = job(width, "optim.weight_decay=0"), batches(40), {}
    for power in range(-9, -2):
        model, declared = built(one)
        optimizer = optimizer_of(one, model, declared, 2.0**power)
        losses[power] = sum([step(model, optimizer, tokens) for tokens in data][-8:])
    return min(losses, key=losses.__getitem__)


@pytest.mark.slow
def test_the_best_rate_of_a_narrow_model_is_that_of_a_wide_one() -> None:
    """Over powers of two. So short a training of so small a model does not tell the standard parametrization apart by its best rate;
    how much its logits change does."""
    assert best_power(BASE) == best_power(12 * BASE)


class TestParts:
    def test_a_part_that_does_not_say_what_it_sums_over(self) -> None:
        narrow = {name: self.module(width) for name, width in (("one", 8), ("other", 4))}
        with pytest.raises(UserError, match="grows along 2 dimensions"):
            scaled(narrow["one"], narrow["other"])

    def test_other_parameters(self) -> None:
        with pytest.raises(UserError, match="must have the same parameters"):
            scaled(self.module(4), torch.nn.Module())

    @staticmethod
    def module(width: int) -> Any:
        from llmfactory.core.sharding import Normal
        from llmfactory.model.part import Part

        class Matrix(Part):
            def __init__(self) -> None:
                super().__init__()
                self.weight = torch.nn.Parameter(torch.zeros(width, width))

            def declare(self) -> dict[str, Parameter]:
                return {"weight": Parameter(Normal(1.0))}

        return Matrix()


def test_experts_and_tables_of_positions() -> None:
    heads = ["model.dim=32", "model.attention.n_heads=4", "model.attention.n_kv_heads=2"]
    experts = ["model/ffn=moe", "model.ffn.n_experts=4", "model.ffn.hidden=48", "model/position=learned"]
    model, declared = built(compose_job(["model=llama_tiny", *SMALL, *heads, *experts, *MUP]).job)
    rates_of = {name: declared[name].rate for name in declared if name.startswith(("blocks.0.ffn.", "position"))}
    assert {name.rsplit(".", 1)[-1] if "experts" in name else name: rate for name, rate in rates_of.items()} == {
        "position.weight": 1.0,
        "gate": 0.5,
        "up": 0.5,
        "down": 0.5,
        "blocks.0.ffn.router.weight": 0.5,
    }
    router, up = (model.get_parameter(f"blocks.0.ffn.{name}") for name in ("router.weight", "experts.up"))
    assert router.std().item() == pytest.approx(0.25 / 2, rel=0.2)
    assert up.std().item() == pytest.approx(0.25 / 2**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("line", "weight"), [(["stage=reward", "model/head=reward"], "head.weight"), (["stage=ppo"], "critic.head.weight")]
)
def test_a_head_of_one_number_is_an_output_matrix(line: list[str], weight: str) -> None:
    """A reward, or the critic's values: as many numbers at every width, of more inputs."""
    stage = line[0]
    task = "preference" if stage == "stage=reward" else "prompts"
    grader = [] if stage == "stage=reward" else ["stage/grader=[length]", "stage.max_tokens=8"]
    more = [*line, f"data={task}", "data.source.files=[a.jsonl]", "data.form.max_tokens=8", *grader]
    found = {}
    for width in (16, 64):
        one = job(width, *more)
        with torch.device("meta"):
            model = one.model.build()
            objective = one.stage.trained(one)  # type: ignore[attr-defined]
            objective.equip(model)
        found[width] = one.optim.width.declared(model, one.model, objective.equip)[weight]
    assert (found[16].rate, found[64].rate) == (1.0, 0.25)
    assert str(found[64].start) == f"{found[16].start}, times 0.25"


def test_a_base_without_a_width() -> None:
    with pytest.raises(ConfigError, match="narrow model's width"):
        Mup(base={"ffn.hidden": 3})
