"""Prompt tuning (Lester et al. 2021, section 2): the vectors of P virtual tokens before each text are trained, and nothing else.

A method of this kind stands beside the model's embedding. Hooks of the whole model put its virtual tokens into what the model reads
and take them out of what it gives, so that neither batches nor objectives know of them. An encoder-decoder's encoder reads them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.errors import UserError
from llmfactory.core.sharding import Normal, Parameter, Uniform
from llmfactory.model.embedding.table import TokenTable
from llmfactory.model.encoder_decoder import EncoderDecoderModel
from llmfactory.model.multimodal import MultimodalModel
from llmfactory.model.skeleton import Skeleton
from llmfactory.parallel.mesh import World
from llmfactory.parallel.weights import assemble, put
from llmfactory.peft.part import ADAPTERS, Adapter, attach
from llmfactory.peft.prompt_spec import Prompt, PromptStart
from llmfactory.peft.virtual import insert, insert_into_source


class VirtualTokens(Adapter):
    """Makes the vectors [P, width] of virtual tokens, `width` that of the table that it stands beside."""

    def __init__(self, name: str, count: int) -> None:
        super().__init__(name)
        self.count = count

    @abstractmethod
    def forward(self) -> Tensor:
        """[P, width]."""


class PromptVectors(VirtualTokens):
    """Trained as they are."""

    def __init__(self, spec: Prompt, name: str, table: TokenTable) -> None:
        super().__init__(name, spec.tokens)
        self.start, self.std = spec.start, getattr(table, "std", 0.02)
        self.vectors = nn.Parameter(torch.empty(spec.tokens, table.weight.shape[1]))

    def declare(self) -> dict[str, Parameter]:
        # Which tokens of the vocabulary it will be is read off these numbers, which follow from the seed.
        return {"vectors": Parameter(Uniform(1.0) if self.start is PromptStart.vocabulary else Normal(self.std))}

    def forward(self) -> Tensor:
        return self.vectors


class PromptedTable(TokenTable):
    """A table that also knows the vectors of virtual tokens, whose ids follow its own, during a forward that reads some."""

    adapters: nn.ModuleDict
    first_id: ClassVar[int]
    virtual: Tensor | None = None
    """[P, width] of all that are active."""
    places_BT: Tensor | None = None
    """Columns of the text among them."""

    def vectors(self, tokens: Tensor) -> Tensor:
        if self.virtual is None:
            return super().vectors(tokens)
        number = tokens - self.first_id
        known = super().vectors(tokens.where(number < 0, 0))
        return torch.where((number < 0)[..., None], known, self.virtual[number.clamp_min(0)].to(known.dtype))

    def on(self) -> list[VirtualTokens]:
        """The active adapters."""
        return [one for one in self.adapters.values() if isinstance(one, VirtualTokens) and one.active]


def adapt(spec: Prompt, model: Skeleton, name: str) -> None:
    put_before(model, PromptVectors(spec, name, table_of(model)))


def table_of(model: Skeleton) -> TokenTable:
    """The embedding of what the model reads."""
    table = model.decoder.embedding if isinstance(model, MultimodalModel) else getattr(model, "embedding", None)
    if not isinstance(table, TokenTable):
        raise TypeError(f"virtual tokens stand before what an embedding reads, and {type(model).__name__} has none")
    return table


def put_before(model: Skeleton, adapter: VirtualTokens) -> None:
    """Let a model read virtual tokens before each text."""
    table = table_of(model)
    attach(table, adapter)
    if not isinstance(table, PromptedTable):
        kind = type(table)
        table.__class__ = type(kind.__name__, (PromptedTable, kind), {"first_id": model.spec.vocab_size})
        model.register_forward_pre_hook(_enter, prepend=True, with_kwargs=True)
        model.register_forward_hook(_leave)
    model.preceding += adapter.count


def _enter(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    assert isinstance(model, Skeleton)
    table = table_of(model)
    assert isinstance(table, PromptedTable)
    on, (tokens_BT, context) = table.on(), arguments(*args, **kwargs)
    count = sum(one.count for one in on)
    if not count:
        return None
    if isinstance(model, EncoderDecoderModel):
        reads = context.source is not None
        context = insert_into_source(context, count, table.first_id)
    else:
        tokens_BT, context, table.places_BT = insert(tokens_BT, context, count, table.first_id)
        reads = table.places_BT is not None
    if reads:
        table.virtual = torch.cat([one() for one in on])
    return (tokens_BT, context), {}


def _leave(model: nn.Module, args: tuple[Any, ...], hidden_BND: Tensor) -> Tensor | None:
    assert isinstance(model, Skeleton)
    table = table_of(model)
    assert isinstance(table, PromptedTable)
    places_BT, table.places_BT, table.virtual = table.places_BT, None, None
    if places_BT is None:
        return None
    return hidden_BND.gather(1, places_BT[..., None].expand(-1, -1, hidden_BND.shape[-1]))


def arguments(tokens_BT: Tensor, context: Context) -> tuple[Tensor, Context]:
    """Of a model's call, however they were given."""
    return tokens_BT, context


# ---- first values


def begin(spec: Prompt, model: Skeleton, world: World, encode: Callable[[str], list[int]] | None) -> None:
    """Vectors of tokens of the vocabulary, or of a text's, however the table lies over `world`."""
    if spec.start is PromptStart.random:
        return
    table = table_of(model)
    for adapter in table.get_submodule(ADAPTERS).children():
        if not isinstance(adapter, PromptVectors):
            continue
        own, rows = adapter._parameters["vectors"], table._parameters["weight"]
        assert own is not None
        assert rows is not None
        found: dict[str, Tensor] = {}
        assemble({"own": own, "rows": rows}, world, found.__setitem__)
        if spec.start is PromptStart.text:
            ids_P = ids_of(spec, model, encode).to(rows.device)
        else:
            ids_P = ((found["own"][:, 0].double() + 1) / 2 * len(found["rows"])).long().clamp(0, len(found["rows"]) - 1)
        put(own, found["rows"][ids_P])


def ids_of(spec: Prompt, model: Skeleton, encode: Callable[[str], list[int]] | None) -> Tensor:
    """[P], the text's tokens, over and over where there are fewer."""
    assert spec.text is not None
    if encode is None:
        raise UserError("peft.start=text needs a tokenizer, and there is none here")
    ids = encode(spec.text)
    if not ids or max(ids) >= model.spec.vocab_size:
        raise UserError(f"peft.text={spec.text!r} has no tokens that the model knows: give another text")
    return torch.tensor([ids[place % len(ids)] for place in range(spec.tokens)])
