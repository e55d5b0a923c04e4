"""LoRA in the library `peft`: `lora_A.weight` [R, I] and `lora_B.weight` [O, R] beside a map, scaled by alpha / R.

A map that holds several of ours has their ranks together, with an alpha of its own (`rank_pattern`, `alpha_pattern`) that keeps the
scale. DoRA is told in the same config: `use_dora`, and `lora_magnitude_vector` [O] beside each map.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from llmfactory.checkpoint.names.adapter import PREFIX, AdapterFolder
from llmfactory.checkpoint.names.adapter_low_rank import by_rows, joined, of_rows, parted
from llmfactory.checkpoint.names.adapter_method import (
    Config,
    Incoming,
    Method,
    Outgoing,
    beside,
    endings,
    entries_by_module,
    insist_all,
    number,
    ours_at,
    patterns,
    table,
)
from llmfactory.checkpoint.names.adapter_places import WEIGHT, Place
from llmfactory.checkpoint.names.family import Inexpressible
from llmfactory.peft.lora_spec import LowRankSpec
from llmfactory.peft.spec import AdapterSpec, Dora, Lora, Qlora

if TYPE_CHECKING:
    from torch import Tensor

    from llmfactory.checkpoint.names.adapter_low_rank import Pair
    from llmfactory.peft.lora import LowRankAdapter

A, B, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"


class LoraMethod(Method):
    kind = "LORA"
    specs = (Lora, Qlora, Dora)

    def spec(self, folder: AdapterFolder) -> AdapterSpec:
        modules = set(beside(folder, A).values())
        ranks = {folder.tensors[name].shape[0] for name in beside(folder, A)}
        scales = {scale_of(folder, module, folder.tensors[name].shape[0]) for name, module in beside(folder, A).items()}
        rank, stabilized = max(ranks), bool(folder.config.get("use_rslora"))
        scale = max(scales)
        return (Dora if folder.config.get("use_dora") else Lora)(
            rank=rank,
            alpha=alpha_of(scale, rank, stabilized),
            rank_stabilized=stabilized,
            dropout=number(folder, "lora_dropout", 0.0),
            targets=targets_of(folder, modules),
        )

    def ours(self, incoming: Incoming, spec: AdapterSpec) -> Iterator[tuple[str, Tensor]]:
        assert isinstance(spec, LowRankSpec)
        found: list[tuple[Place, Pair]] = []
        for (place, a), (_, b) in zip(incoming.by_place(A), incoming.by_place(B), strict=True):
            scale = scale_of(incoming.folder, place.module, a.shape[0])
            found.append((place, (a, b if scale == spec.scale else b * (scale / spec.scale))))
        for path, (a, b) in parted(found).items():
            yield ours_at(path, "a"), padded(a, spec.rank, 0)
            yield ours_at(path, "b"), padded(b, spec.rank, 1)
        if isinstance(spec, Dora):
            for place, magnitude in incoming.by_place(MAGNITUDE):
                yield from ((ours_at(path, "magnitude"), own) for path, own in by_rows(place, magnitude).items())

    def theirs(self, outgoing: Outgoing) -> tuple[Config, dict[str, Tensor]]:
        spec = outgoing.peft
        assert isinstance(spec, LowRankSpec)
        pairs, dora = pairs_of(outgoing), isinstance(spec, Dora)
        config, tensors = low_rank(outgoing, pairs, spec.scale, spec.rank_stabilized)
        if dora:
            tensors |= magnitudes(outgoing, pairs)
        return {**config, "peft_type": self.kind, "lora_dropout": spec.dropout, "use_dora": dora}, tensors


def pairs_of(outgoing: Outgoing) -> dict[str, Pair]:
    """A and B beside each map; where they began as a part of the base's matrix, what they have gained since."""
    import torch

    found: dict[str, Pair] = {}
    for path, adapter in low_rank_adapters(outgoing).items():
        a, b = adapter.a.detach(), adapter.b.detach()
        first = adapter.first(outgoing.base(f"{path}{WEIGHT}")).values if adapter.needs_base else {}
        if "a" in first:
            a, b = torch.cat((a, first["a"].to(a))), torch.cat((b, -first["b"].to(b)), 1)
        found[path] = a, b
    return found


def low_rank_adapters(outgoing: Outgoing) -> dict[str, LowRankAdapter]:
    """By the path of the map that each stands beside."""
    from llmfactory.peft.lora import LowRankAdapter
    from llmfactory.peft.part import adapters

    found: dict[str, LowRankAdapter] = {}
    for path, one in adapters(outgoing.model):
        beside = path.partition(".adapters.")[0]
        if not isinstance(one, LowRankAdapter):
            raise Inexpressible(f"{beside} is a stack of experts' matrices, beside which peft puts nothing")
        found[beside] = one
    return found


def magnitudes(outgoing: Outgoing, pairs: Mapping[str, Pair]) -> dict[str, Tensor]:
    """Of DoRA; rows of maps without an adapter keep the length that they have."""
    own = {path: adapter.get_parameter("magnitude").detach() for path, adapter in low_rank_adapters(outgoing).items()}
    found = {}
    for place in outgoing.places:
        if set(place.ours) & set(pairs):
            there = {path: own[path] if path in own else outgoing.base(f"{path}{WEIGHT}").norm(dim=1) for path in place.ours}
            found[f"{PREFIX}{place.module}{MAGNITUDE}"] = of_rows(place, there)
    return found


def low_rank(outgoing: Outgoing, pairs: Mapping[str, Pair], scale: float, stabilized: bool) -> tuple[Config, dict[str, Tensor]]:
    """What all low-rank methods say, and their tensors."""
    insist_all(outgoing, pairs)
    found = {place: pair for place in outgoing.places if (pair := joined(place, pairs)) is not None}
    ranks = {place.module: a.shape[0] for place, (a, _) in found.items()}
    rank = min(ranks.values())
    modules = entries_by_module(outgoing.family.entries(outgoing.spec))
    other = {module: own for module, own in ranks.items() if own != rank}
    config = {
        "r": rank,
        "lora_alpha": alpha_of(scale, rank, stabilized),
        "use_rslora": stabilized,
        "rank_pattern": other,
        "alpha_pattern": {module: alpha_of(scale, own, stabilized) for module, own in other.items()},
        "target_modules": endings(ranks, modules),
        "fan_in_fan_out": all(place.flipped for place in found),
        "bias": "none",
        "init_lora_weights": True,
    }
    tensors: dict[str, Tensor] = {}
    for place, (a, b) in found.items():
        tensors |= {f"{PREFIX}{place.module}{A}": a, f"{PREFIX}{place.module}{B}": b}
    return config, tensors


def alpha_of(scale: float, rank: int, stabilized: bool) -> float:
    return scale * (rank**0.5 if stabilized else rank)


def scale_of(folder: AdapterFolder, module: str, rank: int) -> float:
    """Of the change of a map."""
    alpha = number(folder, "lora_alpha", 8)
    for key, value in table(folder, "alpha_pattern").items():
        if re.match(rf"(.*\.)?({key})$", module):
            alpha = float(value)
            break
    return alpha / (rank**0.5 if folder.config.get("use_rslora") else rank)


def targets_of(folder: AdapterFolder, modules: set[str]) -> list[str]:
    """Patterns of our maps that stand in modules of theirs."""
    known = entries_by_module(folder.base.family.entries(folder.base.spec))
    chosen = {path for module in modules for path in known[module]}
    return patterns(chosen, [path for paths in known.values() for path in paths])


def padded(tensor: Tensor, size: int, dim: int) -> Tensor:
    """With zeros up to a size along a dimension: the rank of other maps is larger."""
    import torch

    missing = list(tensor.shape)
    missing[dim] = size - tensor.shape[dim]
    return torch.cat((tensor, tensor.new_zeros(missing)), dim).contiguous()
