"""L2-SP: all weights are held alike (Li et al. 2018)."""

from __future__ import annotations

from torch import nn

from llmfactory.stage.anchor.anchor import Anchor


class L2SpAnchor(Anchor):
    def importance(self, name: str, parameter: nn.Parameter) -> None:
        return None
