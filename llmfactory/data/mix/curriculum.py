"""Weights that change in the course of the run."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmfactory.data.mix.spec import Curriculum, Knot


def knots(spec: Curriculum, tokens: Mapping[str, int]) -> list[Knot]:
    from llmfactory.data.mix.spec import Transition

    places = [(place, {name: weights[number] for name, weights in spec.weights.items()}) for number, place in enumerate(spec.at)]
    if spec.transition is Transition.linear:
        return places
    jumps = [[(place, before), (place, after)] for (_, before), (place, after) in pairwise(places)]
    return places[:1] + [knot for jump in jumps for knot in jump]
