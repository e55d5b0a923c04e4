from __future__ import annotations

from dataclasses import dataclass

from llmfactory.model.norm.spec import NormSpec


@dataclass(kw_only=True, slots=True)
class ScaleNorm(NormSpec):
    """x / |x| * gain, one gain for the whole vector (Nguyen and Salazar 2019, equation 5)."""

    eps: float = 1e-5
    """Least length that is divided by."""

    def build(self, dim: int):
        from my_part.model.norm.scale_norm import ScaleNormalization

        return ScaleNormalization(self, dim)
