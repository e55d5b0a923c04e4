"""AdaLoRA in the library `peft`: `lora_A` [R, I], `lora_E` [R, 1] and `lora_B` [O, R] beside a map.

It scales by alpha / (R + 0.00001), R the rank that all maps began with. What was left of them may be said in `rank_pattern`, as it
is written there, or by zeros, as it is here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmfactory.checkpoint.names.adapter import PREFIX, AdapterFolder
from llmfactory.checkpoint.names.adapter_lora import low_rank_adapters, padded, targets_of
from llmfactory.checkpoint.names.adapter_low_rank import joined, parted
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
)
from llmfactory.peft.spec import Adalora, AdapterSpec

if TYPE_CHECKING:
    from torch import Tensor

A, B, E = ".lora_A", ".lora_B", ".lora_E"
ADDED = 1e-5
"""What they add to the rank before they divide by it."""


class AdaloraMethod(Method):
    kind = "ADALORA"
    specs = (Adalora,)

    def spec(self, folder: AdapterFolder) -> AdapterSpec:
        names = beside(folder, A)
        rank = max(1, *(folder.tensors[name].shape[0] for name in names))
        return Adalora(
            rank=rank,
            target_rank=min(rank, int(number(folder, "target_r", rank))),
            alpha=rank * _scale(folder),
            dropout=number(folder, "lora_dropout", 0.0),
            targets=targets_of(folder, set(names.values())),
        )

    def ours(self, incoming: Incoming, spec: AdapterSpec) -> Iterator[tuple[str, Tensor]]:
        import torch

        assert isinstance(spec, Adalora)
        values = {place.module: e[:, 0] for place, e in incoming.by_place(E)}
        pairs = [(place, (a, b)) for (place, a), (_, b) in zip(incoming.by_place(A), incoming.by_place(B), strict=True)]
        of_module = {path: place.module for place, _ in pairs for path in place.ours}
        for path, (a, b) in parted(pairs).items():
            e = padded(values[of_module[path]], spec.rank, 0)
            yield ours_at(path, "a"), padded(a, spec.rank, 0)
            yield ours_at(path, "b"), padded(b, spec.rank, 1)
            yield ours_at(path, "e"), e
            yield ours_at(path, "kept"), (torch.arange(spec.rank) < len(a)).to(e)
            for name, tensor in (("a", padded(a, spec.rank, 0)), ("b", padded(b, spec.rank, 1)), ("e", e)):
                for kind in ("sensitivity", "uncertainty"):
                    yield ours_at(path, f"{name}_{kind}"), torch.zeros_like(tensor)

    def theirs(self, outgoing: Outgoing) -> tuple[Config, dict[str, Tensor]]:
        """Of each map what is left, and zeros up to the largest rank."""
        import torch

        spec = outgoing.peft
        assert isinstance(spec, Adalora)
        held = low_rank_adapters(outgoing)
        insist_all(outgoing, held)
        left = {path: one.get_parameter("e").detach() != 0 for path, one in held.items()}
        pairs = {path: (one.a.detach()[left[path]], one.b.detach()[:, left[path]]) for path, one in held.items()}
        found = {}
        for place in outgoing.places:
            if (pair := joined(place, pairs, together=False)) is not None:
                e = torch.cat([held[path].get_parameter("e").detach()[left[path]] for path in place.ours if path in held])
                found[place] = (*pair, e)
        rank = max(1, *(len(e) for *_, e in found.values()))
        tensors: dict[str, Tensor] = {}
        for place, (a, b, e) in found.items():
            beginning = f"{PREFIX}{place.module}"
            tensors |= {f"{beginning}{A}": padded(a, rank, 0), f"{beginning}{B}": padded(b, rank, 1)}
            tensors[f"{beginning}{E}"] = padded(e, rank, 0)[:, None] * (rank + ADDED) / rank
        config = {
            "peft_type": self.kind,
            "init_r": rank,
            "target_r": min(rank, spec.target_rank),
            "lora_alpha": spec.scale * rank,
            "lora_dropout": spec.dropout,
            "target_modules": endings(
                (place.module for place in found), entries_by_module(outgoing.family.entries(outgoing.spec))
            ),
            "fan_in_fan_out": all(place.flipped for place in found),
            "tinit": spec.first_steps,
            "tfinal": spec.last_steps,
            "deltaT": spec.interval,
            "beta1": spec.smoothing,
            "beta2": spec.smoothing,
            "orth_reg_weight": spec.orthogonality,
            "total_step": spec.total_steps,
        }
        return config, tensors


def _scale(folder: AdapterFolder) -> float:
    rank = number(folder, "init_r", 12)
    alpha = number(folder, "lora_alpha", 8)
    return (alpha if alpha > 0 else rank) / (rank + ADDED)
