"""Several adapters beside one base, switched and stacked: those of runs that trained a part of it, and folders of the library `peft`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from llmfactory.checkpoint import io
from llmfactory.checkpoint.names.published import is_published
from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.core.spec import stem
from llmfactory.model.skeleton import Skeleton
from llmfactory.parallel.mesh import World
from llmfactory.parallel.weights import put
from llmfactory.peft.active import choose
from llmfactory.peft.adalora import AdaloraAdapter
from llmfactory.peft.base_spec import DEFAULT
from llmfactory.peft.lora import LoraAdapter, StackLora
from llmfactory.peft.part import ADAPTERS, ExpertsAdapter, adapters
from llmfactory.peft.spec import Qlora
from llmfactory.precision.plugin import MeshPrecision
from llmfactory.stage.base import Trained, contents, trained_part
from llmfactory.stage.initial import fill, model_of


def load_with(
    job: Job, checkpoint: Path, named: Mapping[str, str], weights: Mapping[str, float], precision: MeshPrecision, world: World
) -> Skeleton:
    """The job's model with the weights of a checkpoint, and beside it the adapters that `named` has by name; `weights`: what the
    changes of some are multiplied by. In evaluation mode, on this process's device.

    Raises UserError where adapters were trained beside another base, or are no adapters.
    """
    parts = {name: _opened(name, init) for name, init in named.items()}
    _insist_on_base(parts, named, checkpoint)
    model = model_of(job)
    for name, part in parts.items():
        part.peft.apply(model, name)
    _insist_beside(model)
    precision.convert_module(model)
    places = {name: tensor.detach() for name, tensor in model.named_parameters()}
    with torch.no_grad():
        for name, part in parts.items():
            for own, tensor in part.own():
                put(places[_renamed(own, name)], tensor)
    fill(model, checkpoint, trained=job.init_trained)
    for name, weight in weights.items():
        _weigh(model, name, weight)
    return model.to(world.device).eval()


def turns(model: Skeleton, named: Iterable[str], stacked: bool) -> Iterator[str]:
    """Switch one adapter after the other on, or all together, and say each time which these are."""
    names = list(named)
    always = [name for name in {one.name for _, one in adapters(model)} if name not in names]
    for group in [names] if stacked else [[name] for name in names]:
        choose(model, [*always, *group])
        yield " + ".join(group)


def _opened(name: str, init: str) -> Trained:
    path = Path(init).expanduser()
    there = path if is_published(path) else io.find(path)
    part = trained_part(there)
    if part is None:
        raise UserError(f"stage.adapters.{name}={init} is a whole model and no adapter: start from it with init={init}")
    own = [one for one in part.tensors if f".{ADAPTERS}." not in f".{one}"]
    if part.peft.changes_base or own:
        told = own[0] if own else "all that it trained"
        raise UserError(
            f"stage.adapters.{name}={init}, trained with peft={stem(type(part.peft))}, has changed parameters of the model itself "
            f"({told}), which others share: start from it with init={init}"
        )
    return part


def _insist_on_base(parts: Mapping[str, Trained], named: Mapping[str, str], checkpoint: Path) -> None:
    here = contents(checkpoint)
    for name, part in parts.items():
        base = part.stands_on()
        if base is None or contents(base) != here:
            beside = "random weights" if base is None else str(base)
            raise UserError(
                f"stage.adapters.{name}={named[name]} was trained beside {beside}, and init={checkpoint} is another model"
            )
    forms = {name: part.peft.base.name if isinstance(part.peft, Qlora) else "full precision" for name, part in parts.items()}
    if len(set(forms.values())) > 1:
        listed = ", ".join(f"{name}: {form}" for name, form in forms.items())
        raise UserError(
            f"stage.adapters were trained beside a base in different forms ({listed}); use those of one form together"
        )


def _renamed(own: str, name: str) -> str:
    """The name of an adapter's tensor, under the adapter's name here."""
    return own.replace(f".{ADAPTERS}.{DEFAULT}.", f".{ADAPTERS}.{name}.")


def _weigh(model: Skeleton, name: str, weight: float) -> None:
    for path, one in adapters(model):
        if one.name == name and not isinstance(one, ExpertsAdapter):  # which holds others
            if not isinstance(one, (LoraAdapter, StackLora, AdaloraAdapter)):
                raise UserError(
                    f"stage.adapter_weights.{name}: what stands at {path} is no low-rank change, which could be weighed"
                )
            one.scale *= weight


def _insist_beside(model: Skeleton) -> None:
    """What began with a part of the base's matrices took it out of these."""
    taking = next((one.name for _, one in adapters(model) if one.takes_from_base), None)
    if taking is not None:
        raise UserError(
            f"stage.adapters.{taking} was begun with a part of the base's matrices (start=pissa), which others need: write it by "
            "stage=export stage/format=peft, and name that folder"
        )
