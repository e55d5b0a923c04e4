"""At which multiple of the learning rate each parameter learns, and how much it decays.

Layer-wise decay (Clark et al. 2020, ELECTRA, appendix A; Howard and Ruder 2018, section 3.2): of L layers in forward order, layer l
learns at d^(L + 1 - l) times the rate, what stands before the first at d^(L + 1), what comes after the last, heads too, at the rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.core.sharding import Layout, Parameter
from llmfactory.model.skeleton import Skeleton
from llmfactory.optim.groups import Rates
from llmfactory.optim.spec import OptimSpec
from llmfactory.peft.targets import parameters_below
from llmfactory.stage.spec import TrainingSpec
from llmfactory.stage.workload import built


def rates(
    model: Skeleton, optim: OptimSpec, declared: Mapping[str, Parameter], of_method: Mapping[str, float] = MappingProxyType({})
) -> Rates:
    """Of all parameters of a model. `of_method`: what a parameter-efficient method says itself of their learning rates.

    Raises:
        UserError: a pattern of the config that means no parameter.
    """
    apart = matrices(model, declared) if optim.matrices_apart else ()
    factors, found = lr_factors(model, optim, of_method), decays(model, optim, declared)
    for name, one in declared.items():
        if one.rate != 1.0:  # a step decays by the product of the two, which the width does not change
            factors[name] = factors.get(name, 1.0) * one.rate
            says = found[name]
            found[name] = (says if not isinstance(says, bool) else optim.weight_decay if says else 0.0) / one.rate
    return Rates(optim.weight_decay, found, factors, frozenset(apart))


def insist_on_names(job: Job) -> None:
    """That what the config calls by patterns or by kind is in the model, before anything else is begun: the model is built on torch's
    meta device, without memory.

    Raises:
        UserError: a pattern of `optim` or `peft` that means nothing, a method that finds nothing to train.
    """
    if job.model.graph == "counts":
        return
    assert isinstance(job.stage, TrainingSpec)
    model, equip = built(job), job.stage.trained(job).equip
    rates(model, job.optim, job.optim.width.declared(model, job.model, equip), job.peft.lr_factors(model))


def lr_factors(model: Skeleton, optim: OptimSpec, of_method: Mapping[str, float]) -> dict[str, float]:
    """By name, the multiples of parameters that do not learn at 1; `of_method`: what a parameter-efficient method says itself.

    Raises:
        UserError: a pattern of `optim.lr_factors` that means no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    found = dict.fromkeys(names, 1.0)
    if optim.layer_decay is not None:
        found = {name: optim.layer_decay**below for name, below in layers_below_the_top(model).items()}
    named = chosen(model, optim.lr_factors, "optim.lr_factors")
    both = {name: found[name] * named.get(name, 1.0) * of_method.get(name, 1.0) for name in names}
    return {name: factor for name, factor in both.items() if factor != 1.0}


def decays(model: Skeleton, optim: OptimSpec, declared: Mapping[str, Parameter]) -> dict[str, bool | float]:
    """By name, whether weight decay applies, as the parts declare, or the number that `optim.weight_decays` gives instead."""
    return {name: one.decay for name, one in declared.items()} | chosen(model, optim.weight_decays, "optim.weight_decays")


def matrices(model: Skeleton, declared: Mapping[str, Parameter]) -> list[str]:
    """Names of what maps features to features; tables of tokens are not."""
    return [name for name, one in model.named_parameters() if one.dim() >= 2 and declared[name].layout is not Layout.vocab]


def chosen(model: Skeleton, numbers: Mapping[str, float], key: str) -> dict[str, float]:
    """By name of a parameter, the number of the last pattern that means it."""
    found: dict[str, float] = {}
    for pattern, number in numbers.items():
        try:
            found.update(dict.fromkeys(parameters_below(model, [pattern]), float(number)))
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
    return found


def layers_below_the_top(model: Skeleton) -> dict[str, int]:
    """By name of a parameter, how many layers below what is learned at the full rate it stands: 0 for what follows the last.

    A layer that is passed several times counts where it is passed first; what stands between two layers goes with the lower one.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    steps = model.steps()
    layers = list(dict.fromkeys(id(step.modules[0]) for step in steps if step.layer))
    depth: dict[str, int] = {}
    passed = 0
    for step in steps:
        if step.layer:
            passed = layers.index(id(step.modules[0])) + 1
        at = passed if step.layer or passed < len(layers) else len(layers) + 1
        for parameter in [*step.weights, *(one for module in step.modules for one in module.parameters())]:
            depth.setdefault(names[id(parameter)], at)
    return {name: len(layers) + 1 - depth.get(name, len(layers) + 1) for name in names.values()}
