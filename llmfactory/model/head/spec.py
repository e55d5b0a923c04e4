"""Catalogue of heads: from hidden vectors to logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above, at_least

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmfactory.model.head.part import Head
    from llmfactory.model.part import Part


@dataclass(kw_only=True, slots=True)
class HeadSpec(Spec):
    """Base of the heads."""

    answers: ClassVar[str] = "tokens"
    """What the logits mean, which objectives name to say what they train: `tokens` is a distribution over the vocabulary at each
    token."""

    def problems_at_embedding(self, width: int, dim: int) -> Iterator[Problem]:
        """What is wrong once the width of the vocabulary's vectors and the model's are known."""
        yield from ()

    def build(self, vocab_size: int, dim: int, embedding: Part, std: float, norm: Callable[[int], Part]) -> Head:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of model/head")


def tie_fits(tied: bool, head_width: int | None, width: int, dim: int) -> Iterator[Problem]:
    """A matrix that is the embedding's has the embedding's width."""
    if tied and (head_width or dim) != width:
        reason = f"a tied head has the width of the embedding's vectors, {width}"
        yield Problem("width", head_width, reason, f"width={'null' if width == dim else width}")


@dataclass(kw_only=True, slots=True)
class Lm(HeadSpec):
    """A linear map to one logit a token."""

    tied: bool
    """Borrow the embedding's matrix (Press and Wolf 2017) instead of owning one."""
    bias: bool = False
    """Whether the logits have a bias."""
    width: int | None = None
    """Width of the matrix; hidden vectors of another width are projected to it (OPT-350M). None: the model's, no projection."""
    scale: float = 1.0
    """Factor on the logits, before the bias (Cohere's Command R: 0.0625)."""
    dim_power: float = 0.0
    """The factor is also the model's width to this power (T5 with tied embeddings: -0.5)."""
    softcap: float | None = None
    """Logits z become softcap * tanh(z / softcap) (Gemma 2: 30); None: they stay."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "width")
        yield from above(self, 0.0, "scale", repair=1.0)
        yield from above(self, 0.0, "softcap", repair=30.0)

    def problems_at_embedding(self, width: int, dim: int) -> Iterator[Problem]:
        yield from tie_fits(self.tied, self.width, width, dim)

    def small(self, scale: float) -> dict[str, Any]:
        return {"width": None if self.width is None else max(1, round(self.width * scale))}

    def build(self, vocab_size: int, dim: int, embedding: Part, std: float, norm: Callable[[int], Part]) -> Head:
        from llmfactory.model.head.lm import OwnHead, Projection, TiedHead

        width = self.width or dim
        transform = None if self.width is None else Projection(dim, width, std)
        factor = self.scale * dim**self.dim_power
        if self.tied:
            return TiedHead(vocab_size, embedding, bias=self.bias, transform=transform, scale=factor, softcap=self.softcap)
        return OwnHead(vocab_size, width, std, bias=self.bias, transform=transform, scale=factor, softcap=self.softcap)
