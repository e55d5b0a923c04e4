"""Virtual tokens and trained keys and values in the library `peft`: one tensor, `prompt_embeddings`.

Of virtual tokens it is their vectors [P, width], whatever network has made them. Of keys and values it is [P, L * 2 * width]: for each
of L layers the keys of all heads, then the values. In an encoder-decoder `peft` gives layer i of the decoder what stands at layer
2 i modulo L.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmfactory.checkpoint.names.adapter import CONFIG, AdapterFolder
from llmfactory.checkpoint.names.adapter_method import Config, Incoming, Method, Outgoing, number, ours_at
from llmfactory.checkpoint.names.family import Inexpressible
from llmfactory.core.errors import UserError
from llmfactory.model.spec import EncoderDecoder, ModelSpec
from llmfactory.peft.spec import AdapterSpec, Prefix, Prompt, PTuning, PTuningV2

if TYPE_CHECKING:
    from torch import Tensor

    from llmfactory.model.skeleton import Skeleton
    from llmfactory.peft.part import Adapter

EMBEDDINGS = "prompt_embeddings"


class PromptMethod(Method):
    """Vectors of virtual tokens."""

    def __init__(self, kind: str, own: type[AdapterSpec]) -> None:
        self.kind, self.specs = kind, (own,)

    def spec(self, folder: AdapterFolder) -> AdapterSpec:
        """What a network has made is trained further as it is."""
        return Prompt(tokens=_places(folder))

    def ours(self, incoming: Incoming, spec: AdapterSpec) -> Iterator[tuple[str, Tensor]]:
        from llmfactory.peft.prompt import table_of

        table = table_of(incoming.model)
        path = next(name for name, module in incoming.model.named_modules() if module is table)
        yield ours_at(path, "vectors"), _read(incoming, table.weight.shape[1])[: _places(incoming.folder)]

    def theirs(self, outgoing: Outgoing) -> tuple[Config, dict[str, Tensor]]:
        import torch

        from llmfactory.peft.prompt import VirtualTokens

        made = [one for _, one in _adapters(outgoing.model) if isinstance(one, VirtualTokens)]
        with torch.no_grad():
            vectors = made[0].eval()()
        config = {"encoder_hidden_size": vectors.shape[1]} if self.kind == "P_TUNING" else {}
        return {**_sizes(self.kind, outgoing.spec, len(vectors), vectors.shape[1], 1), **config}, {EMBEDDINGS: vectors}


class PrefixMethod(Method):
    """Keys and values of each layer."""

    kind = "PREFIX_TUNING"
    specs = (Prefix, PTuningV2)

    def spec(self, folder: AdapterFolder) -> AdapterSpec:
        return PTuningV2(tokens=_places(folder))

    def ours(self, incoming: Incoming, spec: AdapterSpec) -> Iterator[tuple[str, Tensor]]:
        from llmfactory.peft.prefix import OwnPrefix

        spec.apply(incoming.model)
        found = [(path, one) for path, one in _adapters(incoming.model) if isinstance(one, OwnPrefix)]
        layers, (heads, _, width) = len(found), found[0][1].keys.shape
        both = _read(incoming, layers * 2 * heads * width).unflatten(1, (layers, 2, heads, width))  # type: ignore[no-untyped-call]
        for layer, (path, _) in enumerate(found):
            keys, values = both[:, _layer(incoming.folder.base.spec, layer, layers)].transpose(0, 2).unbind(1)
            yield f"{path}.keys", keys.contiguous()
            yield f"{path}.values", values.contiguous()

    def theirs(self, outgoing: Outgoing) -> tuple[Config, dict[str, Tensor]]:
        import torch

        from llmfactory.peft.prefix import LayerPrefix, PrefixNetwork

        if getattr(outgoing.peft, "encoder", False) or getattr(outgoing.peft, "cross", False):
            raise Inexpressible(
                "peft puts keys and values before those of a decoder only: train with peft.encoder=false peft.cross=false"
            )
        parts = [one for _, one in _adapters(outgoing.model)]
        found = [one for one in parts if isinstance(one, LayerPrefix)]
        with torch.no_grad():
            hidden = next((one() for one in parts if isinstance(one, PrefixNetwork)), None)
            pairs = [one(hidden) for one in found]
        keys, values = pairs[0]
        if keys.shape != values.shape:
            raise Inexpressible("peft has keys and values of the same width only")
        heads, count, width = keys.shape
        both = keys.new_zeros(count, len(pairs), 2, heads, width)
        places = [_layer(outgoing.spec, layer, len(pairs)) for layer in range(len(pairs))]
        if len(set(places)) < len(pairs):
            raise Inexpressible("peft gives several layers of an encoder-decoder with an even number of layers the same values")
        for place, (keys, values) in zip(places, pairs, strict=True):
            both[:, place] = torch.stack((keys, values), 1).transpose(0, 2)
        submodules = 2 if isinstance(outgoing.spec, EncoderDecoder) else 1
        config = _sizes(self.kind, outgoing.spec, count, heads * width, submodules)
        return {**config, "num_layers": len(pairs), "num_attention_heads": heads, "prefix_projection": False}, {
            EMBEDDINGS: both.flatten(1)
        }


def _layer(spec: ModelSpec, layer: int, layers: int) -> int:
    return 2 * layer % layers if isinstance(spec, EncoderDecoder) else layer


def _places(folder: AdapterFolder) -> int:
    return int(number(folder, "num_virtual_tokens"))


def _read(incoming: Incoming, width: int) -> Tensor:
    """[P, width], P more where there is one set for each stack."""
    folder = incoming.folder
    if EMBEDDINGS not in folder.tensors:
        raise UserError(f"{folder.path} has no tensor {EMBEDDINGS}")
    tensor = incoming.read(EMBEDDINGS)
    if tensor.dim() != 2 or tensor.shape[1] != width or len(tensor) < _places(folder):
        raise UserError(
            f"{folder.path}: {EMBEDDINGS} is {list(tensor.shape)}; {folder.path / CONFIG} and the base want [{_places(folder)}, {width}]"
        )
    return tensor


def _sizes(kind: str, spec: ModelSpec, count: int, width: int, submodules: int) -> Config:
    return {
        "peft_type": kind,
        "num_virtual_tokens": count,
        "token_dim": width,
        "num_transformer_submodules": submodules,
        "num_layers": getattr(spec, "n_layers", 1),
        "num_attention_heads": 1,
    }


def _adapters(model: Skeleton) -> Iterator[tuple[str, Adapter]]:
    from llmfactory.peft.part import adapters

    return adapters(model)


PROMPTS = (PromptMethod("PROMPT_TUNING", Prompt), PromptMethod("P_TUNING", PTuning))
