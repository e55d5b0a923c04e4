"""Catalogue of bottleneck adapters: small feed-forward networks beside the sub-layers of each block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import above, at_least, between
from llmfactory.model.ffn.spec import Activation
from llmfactory.peft.base_spec import DEFAULT, AdapterSpec

if TYPE_CHECKING:
    from llmfactory.model.skeleton import Skeleton


class Placement(Enum):
    """Where the networks stand, f being a sub-layer and a(z) = up(activation(down(z)))."""

    houlsby = "after attention and after feed-forward: f(x) + s a(f(x)) (Houlsby et al. 2019)"
    pfeiffer = "after feed-forward: f(x) + s a(f(x)) (Pfeiffer et al. 2021)"
    parallel = "beside feed-forward: f(x) + s a(x) (He et al. 2022)"


@dataclass(kw_only=True, slots=True)
class Adapter(AdapterSpec):
    """Bottleneck adapters (Houlsby et al. 2019), before the residual sum. They are no change of weights and cannot be merged."""

    merges: ClassVar[bool] = False
    placement: Placement = Placement.houlsby
    """Where they stand. What carries a state from token to token counts as attention."""
    width: int = 64
    """Of the bottleneck."""
    activation: Activation = Activation.gelu
    """In the bottleneck."""
    scale: float = 1.0
    """s, the factor on what they give (He et al. 2022 have 4 with placement=parallel)."""
    dropout: float = 0.0
    """Share of the bottleneck's numbers left out, in training only."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "width")
        yield from above(self, 0.0, "scale", repair=1.0)
        yield from between(self, 0.0, 0.99, "dropout")

    def adapt(self, model: Skeleton, name: str = DEFAULT) -> None:
        from llmfactory.peft.adapter import adapt

        adapt(self, model, name)
