"""Weights from sizes: source s of e_s tokens is drawn with probability

    p_s = r_s / sum r,   r_s = min(e_s, K)^(1 / temperature)

With K and temperature that is T5's mixing (Raffel et al. 2020, section 3.5.2); XLM (Conneau and Lample 2019, section 3.1) writes
alpha for 1 / temperature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmfactory.data.mix.spec import ByTokens, Knot


def knots(spec: ByTokens, tokens: Mapping[str, int]) -> list[Knot]:
    sizes = {name: size if spec.cap is None else min(size, spec.cap) for name, size in tokens.items()}
    largest = max(sizes.values(), default=0) or 1  # of which powers stay small
    return [(0.0, {name: (size / largest) ** (1 / spec.temperature) for name, size in sizes.items()})]
