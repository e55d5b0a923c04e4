"""Which family can say a model, for export: the first whose `config.json`, read back, is the same model again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmfactory.checkpoint.names.families import FAMILIES
from llmfactory.checkpoint.names.family import Family, Inexpressible
from llmfactory.checkpoint.names.gguf import config_from, metadata_of
from llmfactory.core.spec import Spec, stem
from llmfactory.model.attention.spec import AttentionSpec
from llmfactory.model.spec import ModelSpec
from llmfactory.model.tower_spec import TowerSpec

KNOWN_BEST = ("llama", "gpt2", "qwen2", "mistral", "bert", "roberta", "t5", "bart")
OWN_CODE = ("baichuan", "chatglm", "internlm")
"""Families by how many programs read them without code of their own; the others stand between."""
SHOWN = 4
"""Families whose reasons a message tells."""
TRAINING = ("dropout", "depth_scaled_init", "init_std")
"""Fields that only training looks at."""


@dataclass(frozen=True, slots=True)
class Target:
    """A family, and a model in its words."""

    family: Family
    config: dict[str, Any]
    """As a config.json."""


def target_for(spec: ModelSpec, name: str | None = None, gguf: bool = False) -> Target:
    """The family of a `model_type`; None: the first that can say the model. Raises Inexpressible with what each lacks.

    `gguf`: it must be able to say it in GGUF's metadata too.
    """
    families = [family for family in sorted(FAMILIES, key=_place) if name is None or name in family.types]
    if not families:
        known = ", ".join(sorted(kind for family in FAMILIES for kind in family.types))
        raise Inexpressible(f"there is no family {name!r}: there are {known}")
    reasons = []
    for family in families:
        try:
            target = _said(family, spec)
            if gguf:
                gguf_metadata(spec, target)
            return target
        except Inexpressible as error:
            if name is not None or "its skeleton is" not in str(error):
                reasons.append(f"{family.types[0]}: {error}")
    shown = (
        "; ".join(reasons[:SHOWN] + ([f"and {len(reasons) - SHOWN} more"] if len(reasons) > SHOWN else []))
        or f"its skeleton {stem(type(spec))} is that of none"
    )
    raise Inexpressible(f"no family can say this model ({shown})" if name is None else shown)


def _place(family: Family) -> int:
    """Families that most programs know come first, those that nobody reads without their own code last."""
    kind = family.types[0]
    return KNOWN_BEST.index(kind) - len(KNOWN_BEST) if kind in KNOWN_BEST else int(kind in OWN_CODE)


def _said(family: Family, spec: ModelSpec) -> Target:
    config = family.config(at_rest(spec))
    differing = differences(spec, family.spec(config))
    if differing:
        raise Inexpressible(f"it cannot say {', '.join(differing)}")
    if "initializer_range" in config:
        config["initializer_range"] = spec.init_std
    return Target(family, config)


def gguf_metadata(spec: ModelSpec, target: Target) -> dict[str, Any]:
    """The metadata of a GGUF file that says the model. Raises Inexpressible."""
    metadata = metadata_of(target.config)
    differing = differences(spec, target.family.spec(config_from(metadata, target.config)))
    if differing:
        raise Inexpressible(f"GGUF cannot say {', '.join(differing)}")
    return metadata


def at_rest(spec: Any) -> Any:
    """A spec without what only training looks at: those fields have their defaults."""
    if isinstance(spec, dict):
        return {key: at_rest(value) for key, value in spec.items()}
    if not isinstance(spec, Spec):
        return spec
    values = {
        field.name: field.default if field.name in TRAINING else at_rest(getattr(spec, field.name))
        for field in dataclasses.fields(spec)
    }
    return dataclasses.replace(spec, **values)


def differences(ours: ModelSpec, theirs: ModelSpec) -> list[str]:
    """Fields in which two models at rest differ, with our values; a None counts as what it stands for."""
    here, there = (dict(_leaves(at_rest(spec), spec.dim)) for spec in (ours, theirs))
    if ours.graph == "recurrent":  # which have no end; nothing in a config.json says what length they were made for
        there["max_positions"] = here.get("max_positions")
    return [f"{key}={here.get(key)!r}" for key in {**here, **there} if here.get(key) != there.get(key)]


def _leaves(spec: Spec, dim: int, prefix: str = "") -> Iterator[tuple[str, Any]]:
    yield prefix or "model", stem(type(spec))
    if isinstance(spec, TowerSpec):
        for number, kind in enumerate(spec.kinds()):
            for name in ("attention", "ffn"):
                yield from _leaves(getattr(kind, name), dim, f"{prefix}layer {number}: {name}.")
    for field in dataclasses.fields(spec):
        if isinstance(spec, TowerSpec) and field.name in ("attention", "ffn", "others", "pattern"):
            continue
        value, path = getattr(spec, field.name), f"{prefix}{field.name}"
        if isinstance(value, Spec):
            width = getattr(value, "dim", dim)
            yield from _leaves(value, width if isinstance(width, int) else dim, f"{path}.")
        elif value is None and isinstance(spec, AttentionSpec):
            yield path, _meant(spec, field.name, dim)
        else:
            yield path, value


def _meant(attention: AttentionSpec, field: str, dim: int) -> Any:
    """What a None of attention stands for."""
    if field == "n_kv_heads":
        return attention.n_heads
    if field == "head_dim":
        return attention.head_width(dim)
    if field == "qkv_bias":
        return getattr(attention, "bias", None)
    return None
