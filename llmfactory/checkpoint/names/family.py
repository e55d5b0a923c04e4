"""The interface of families: how a published model's `config.json` and tensors read in our terms, and back.

A family is a file of this folder: a class with three methods and an entry in `families.py`. Nothing here imports torch, so that
`init=<folder>` is understood while composing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmfactory.core.errors import UserError
from llmfactory.model.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

    Rearrange = Callable[[list[Tensor]], list[Tensor]]

Config = Mapping[str, Any]
"""The content of a `config.json`."""


class Inexpressible(UserError):
    """A model that a family has no words for; the message says which part of it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Some of our tensors and the ones of theirs that hold the same numbers. Each tensor of a model is in exactly one entry."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    to_ours: Rearrange
    """Their tensors, in order -> ours."""
    to_theirs: Rearrange
    """Back: each is the other's inverse, bit for bit."""


class Family(ABC):
    """One `model_type` of the Hugging Face format, or several that share their tensors' names."""

    types: tuple[str, ...]
    """Values of `model_type` that are this family; the first is written on export."""
    objective: str | None = None
    """What it was pretrained on (an option of stage/objective) where its kind of model is usually trained on something else."""
    own_code: bool = False
    """transformers loads it with code that comes with the checkpoint only, so a model is written as one only when asked."""
    ignored: tuple[str, ...] = ()
    """Patterns (regular expressions, whole names) of tensors in their files that hold nothing: masks, tables that are computed."""

    @abstractmethod
    def spec(self, config: Config) -> ModelSpec:
        """The model that a `config.json` describes. Dropout is a matter of training and is not taken over.

        Raises UserError naming the key and value that we have no part for.
        """

    @abstractmethod
    def config(self, spec: ModelSpec) -> dict[str, Any]:
        """The `config.json` of a model, `architectures` and `model_type` included. Raises Inexpressible."""

    def today(self, name: str) -> str:
        """The name that a tensor has today, of one in a file, which may be older."""
        return name

    @abstractmethod
    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        """Every tensor of the model once. Lazy: nothing is loaded."""


def same(ours: str, theirs: str) -> Entry:
    """One tensor under two names."""
    return Entry((ours,), (theirs,), list, list)


def transposed(ours: str, theirs: str) -> Entry:
    """A matrix that they store as [in, out]."""

    def flip(tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0].T.contiguous()]

    return Entry((ours,), (theirs,), flip, flip)


def joined(ours: Sequence[str], theirs: str, sizes: Sequence[int], *, flipped: bool = False) -> Entry:
    """Several of our matrices or biases, with `sizes` output features each, in one of theirs, one below the other.

    `flipped`: theirs is [in, out].
    """

    def cut(tensors: list[Tensor]) -> list[Tensor]:
        whole = tensors[0].T if flipped and tensors[0].dim() == 2 else tensors[0]
        return [piece.contiguous() for piece in whole.split(list(sizes))]  # type: ignore[no-untyped-call]

    def join(tensors: list[Tensor]) -> list[Tensor]:
        import torch

        whole = torch.cat(tensors)
        return [whole.T.contiguous() if flipped and whole.dim() == 2 else whole]

    return Entry(tuple(ours), (theirs,), cut, join)


def stacked(ours: str, theirs: Sequence[str]) -> Entry:
    """One tensor of ours with a first dimension more than each of theirs (experts)."""

    def stack(tensors: list[Tensor]) -> list[Tensor]:
        import torch

        return [torch.stack(tensors)]

    def unstack(tensors: list[Tensor]) -> list[Tensor]:
        return [piece.contiguous() for piece in tensors[0]]

    return Entry((ours,), tuple(theirs), stack, unstack)


def grouped(ours: Sequence[str], theirs: str, n_heads: int, n_kv_heads: int) -> Entry:
    """Our q, k and v (weights or biases) in one of theirs, where each key/value head follows the query heads that it serves."""
    shared = n_heads // n_kv_heads

    def cut(tensors: list[Tensor]) -> list[Tensor]:
        groups = tensors[0].unflatten(0, (n_kv_heads, shared + 2, -1))  # type: ignore[no-untyped-call]
        pieces = groups[:, :shared], groups[:, shared], groups[:, shared + 1]
        return [piece.reshape(-1, *tensors[0].shape[1:]).contiguous() for piece in pieces]

    def join(tensors: list[Tensor]) -> list[Tensor]:
        import torch

        q, k, v = (
            tensor.view(n_kv_heads, heads, -1, *tensor.shape[1:]) for tensor, heads in zip(tensors, (shared, 1, 1), strict=True)
        )
        return [torch.cat((q, k, v), 1).flatten(0, 2)]

    return Entry(tuple(ours), (theirs,), cut, join)


def linear(ours: str, theirs: str, bias: bool) -> Iterator[Entry]:
    """Weight and, where there is one, bias of a linear map or a norm."""
    yield same(f"{ours}.weight", f"{theirs}.weight")
    if bias:
        yield same(f"{ours}.bias", f"{theirs}.bias")
