"""Rotary positions in a `config.json`: `rope_theta`, `partial_rotary_factor` and `rope_scaling`, or all in the newer
`rope_parameters`, whose values come first."""

from __future__ import annotations

import math
from typing import Any

from llmfactory.checkpoint.names.family import Config, Inexpressible
from llmfactory.checkpoint.names.reading import said
from llmfactory.core.errors import UserError
from llmfactory.model.position.scaling.spec import DynamicNtk, Linear, Llama3, None_, ScalingSpec, Yarn
from llmfactory.model.position.spec import PositionSpec, Rope

USUAL = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True, "attention_factor": None}
"""Of YaRN: what a config need not say."""


def rope(config: Config, *, theta: float = 10000.0, share: float = 1.0, interleaved: bool = False) -> Rope:
    """`theta` and `share` (of a head that is rotated): where the config says none."""
    parameters = {**config, **(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    return Rope(
        theta=float(parameters.get("rope_theta") or theta),
        share=float(parameters.get("partial_rotary_factor") or share),
        interleaved=interleaved,
        scaling=scaling(parameters, config),
    )


def scaling(parameters: Config, config: Config) -> ScalingSpec:
    """Of the merged keys. Raises UserError for a kind that we do not have."""
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    trained = parameters.get("original_max_position_embeddings") or config["max_position_embeddings"]
    if kind == "default":
        return None_()
    if kind == "linear":
        return Linear(factor=parameters["factor"])
    if kind == "dynamic":
        return DynamicNtk(factor=parameters["factor"], trained_positions=config["max_position_embeddings"])
    if kind == "llama3":
        low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
        return Llama3(factor=parameters["factor"], trained_positions=trained, low=low, high=high)
    if kind == "yarn":
        return Yarn(
            factor=parameters["factor"],
            trained_positions=trained,
            fast=parameters.get("beta_fast") or 32.0,
            slow=parameters.get("beta_slow") or 1.0,
            attention_factor=attention_factor(parameters),
            whole_pairs=parameters.get("truncate", True),
        )
    raise UserError(f"rope_type={kind!r} in config.json has no counterpart here")


def attention_factor(parameters: Config) -> float | None:
    """YaRN's factor of the tables: said, or a ratio of two that depend on the stretch; None: the usual one."""
    said_factor = parameters.get("attention_factor")
    over, under = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if said_factor is not None or not (over and under):
        return None if said_factor is None else float(said_factor)
    growth = 0.1 * math.log(parameters["factor"])
    return float((over * growth + 1) / (under * growth + 1))


def rope_config(
    position: PositionSpec, max_positions: int, *, interleaved: bool = False, part_of: int | None = None
) -> dict[str, Any]:
    """Keys of rotary positions, with `partial_rotary_factor` and `rope_scaling` only where there are.

    `part_of`: width of a head, in families that can rotate a part of it; None: others pass `partial_rotary_factor` over.
    """
    rotary = said(position, Rope, "theta", "share", "scaling", interleaved=interleaved)
    keys: dict[str, Any] = {"rope_theta": rotary.theta}
    if rotary.share != 1:
        if part_of is None:
            raise Inexpressible(f"rope has share={rotary.share}, and this family rotates whole heads")
        if int(part_of * rotary.share) != rotary.rotated(part_of):
            raise Inexpressible(f"rope has share={rotary.share}, which is no whole pairs of a head {part_of} wide")
        keys["partial_rotary_factor"] = rotary.share
    words = scaling_config(rotary.scaling, max_positions)
    return {**keys, "rope_scaling": words} if words else keys


def scaling_config(scaling: ScalingSpec, max_positions: int) -> dict[str, Any]:
    """`rope_scaling`; empty: there is none."""
    if isinstance(scaling, Linear):
        return {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, DynamicNtk):
        if scaling.trained_positions != max_positions:
            raise Inexpressible("its rotary positions stretch from another length than the model's max_positions on")
        return {"rope_type": "dynamic", "factor": scaling.factor}
    if isinstance(scaling, Llama3):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.trained_positions,
        }
    if isinstance(scaling, Yarn):
        words = {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "beta_fast": scaling.fast,
            "beta_slow": scaling.slow,
            "original_max_position_embeddings": scaling.trained_positions,
            "truncate": scaling.whole_pairs,
            "attention_factor": scaling.attention_factor,
        }
        return {key: value for key, value in words.items() if value != USUAL.get(key, ...)}
    if isinstance(scaling, None_):
        return {}
    raise Inexpressible(f"its rotary positions are stretched by {type(scaling).__name__}, which this format has no word for")
