"""IA3 in the library `peft`: `ia3_l` beside a map, [O, 1] for what it gives, [1, I] for what it reads (`feedforward_modules`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmfactory.checkpoint.names.adapter import PREFIX, AdapterFolder
from llmfactory.checkpoint.names.adapter_lora import targets_of
from llmfactory.checkpoint.names.adapter_low_rank import by_rows, of_rows
from llmfactory.checkpoint.names.adapter_method import Config, Incoming, Method, Outgoing, beside, insist_all, ours_at
from llmfactory.checkpoint.names.family import Inexpressible
from llmfactory.peft.spec import AdapterSpec, Ia3

if TYPE_CHECKING:
    from torch import Tensor

SCALE = ".ia3_l"


class Ia3Method(Method):
    kind = "IA3"
    specs = (Ia3,)

    def spec(self, folder: AdapterFolder) -> AdapterSpec:
        inputs = {module for name, module in beside(folder, SCALE).items() if _reads(folder, name)}
        outputs = set(beside(folder, SCALE).values()) - inputs
        return Ia3(outputs=targets_of(folder, outputs), inputs=targets_of(folder, inputs))

    def ours(self, incoming: Incoming, spec: AdapterSpec) -> Iterator[tuple[str, Tensor]]:
        for place, scale in incoming.by_place(SCALE):
            if scale.shape[1] == 1:
                yield from ((ours_at(path, "scale"), own[:, 0]) for path, own in by_rows(place, scale).items())
            else:
                yield from ((ours_at(path, "scale"), scale[0]) for path in place.ours)

    def theirs(self, outgoing: Outgoing) -> tuple[Config, dict[str, Tensor]]:
        import torch

        from llmfactory.peft.ia3 import Ia3Adapter
        from llmfactory.peft.part import adapters

        held = {path.partition(".adapters.")[0]: one for path, one in adapters(outgoing.model) if isinstance(one, Ia3Adapter)}
        insist_all(outgoing, held)
        reading: list[str] = []
        tensors: dict[str, Tensor] = {}
        for place in outgoing.places:
            there = {path: held[path] for path in place.ours if path in held}
            if not there:
                continue
            first = next(iter(there.values()))
            if any(one.inputs is not first.inputs for one in there.values()):
                raise Inexpressible(f"{place.module} holds maps whose inputs are scaled and maps whose outputs are")
            if first.inputs:
                if len(there) < len(place.ours) or any(not torch.equal(one.scale, first.scale) for one in there.values()):
                    raise Inexpressible(f"{place.module} holds several maps, whose inputs cannot be scaled apart")
                reading.append(place.module)
                scale = first.scale.detach()[None]
            else:
                sizes = dict(zip(place.ours, place.sizes, strict=True))
                own = {path: one.scale.detach() for path, one in there.items()}
                scale = of_rows(place, {path: own.get(path, first.scale.new_ones(sizes[path])).detach() for path in place.ours})[
                    :, None
                ]
            tensors[f"{PREFIX}{place.module}{SCALE}"] = scale
        modules = sorted(name[len(PREFIX) : -len(SCALE)] for name in tensors)
        return {"peft_type": self.kind, "target_modules": modules, "feedforward_modules": sorted(reading)}, tensors


def _reads(folder: AdapterFolder, name: str) -> bool:
    return folder.tensors[name].shape[0] == 1
