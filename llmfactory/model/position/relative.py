"""Vectors of distances (Dai et al. 2019, section 3.3; Yang et al. 2019): sines, then cosines, as `sinusoidal.py` has them.

Distances are counted in places of the row, which within a document are the distances of the positions; what stands in another
document is not seen. Legend: T queries, the last of S places; L distances.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from llmfactory.core.context import Context
from llmfactory.core.sharding import Parameter
from llmfactory.model.frame import Frame
from llmfactory.model.position.part import Position
from llmfactory.model.position.sinusoidal import waves
from llmfactory.model.position.spec import Relative


class RelativePosition(Position):
    """context.relative [L, D], from the largest distance S - 1 down to 0, without a causal mask to -(T - 1)."""

    def __init__(self, spec: Relative, frame: Frame) -> None:
        super().__init__()
        self.clamp, self.dropout = spec.clamp, spec.dropout
        self.dim, self.causal = frame.dim, frame.causal

    def declare(self) -> dict[str, Parameter]:
        return {}

    def prepare(self, context: Context, dtype: torch.dtype) -> Context:
        n_queries = context.positions.shape[-1]
        n_places = n_queries if context.key_positions is None else context.key_positions.shape[-1]
        if context.pieces is not None:  # queries of any places of the row
            n_queries = n_places
        nearest = 0 if self.causal else 1 - n_queries
        distance_L = torch.arange(n_places - 1, nearest - 1, -1, device=context.positions.device)
        if self.clamp is not None:
            distance_L = distance_L.clamp(-self.clamp, self.clamp)
        wide = torch.promote_types(dtype, torch.float32)
        waves_LD = waves(distance_L, self.dim, 10000.0, False, wide).to(dtype)
        return context.with_(relative=F.dropout(waves_LD, self.dropout, self.training))
