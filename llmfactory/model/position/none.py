"""No position information besides the causal mask (NoPE, Kazemnejad et al. 2023)."""

from __future__ import annotations

from llmfactory.core.sharding import Parameter
from llmfactory.model.position.part import Position


class NoPosition(Position):
    """Everything stays as it is."""

    def declare(self) -> dict[str, Parameter]:
        return {}
