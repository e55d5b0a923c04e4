"""The decoder within a multimodal model, in the words of its own family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, Inexpressible
from llmfactory.core.errors import UserError
from llmfactory.model.spec import DecoderOnly, Multimodal


def decoder_of(config: Config) -> dict[str, Any]:
    """The fields of the decoder that a `text_config` describes."""
    from llmfactory.checkpoint.names.families import family_of

    spec = family_of(config).spec(config)
    if type(spec) is not DecoderOnly:
        raise UserError(f"model_type={config.get('model_type')!r} of the text_config in config.json is no decoder")
    return {field.name: getattr(spec, field.name) for field in fields(spec)}


def family_for(spec: Multimodal) -> Family:
    """The first family that can say the decoder, best without code of its own. Raises Inexpressible with what each lacks."""
    from llmfactory.checkpoint.names.families import FAMILIES

    reasons = []
    for family in sorted(FAMILIES, key=lambda family: family.own_code):
        try:
            if family.spec(family.config(spec.language)) == spec.language:
                return family
        except Inexpressible as error:
            reasons.append(f"{family.types[0]}: {error}")
    raise Inexpressible(f"no family can say its decoder ({'; '.join(reason for reason in reasons if 'skeleton' not in reason)})")


def language_entries(spec: Multimodal, ours: str, rename: Callable[[str], str]) -> Iterator[Entry]:
    """The decoder's tensors, of which `rename` says where theirs stand in the whole."""
    for entry in family_for(spec).entries(spec.language):
        named = (tuple(f"{ours}.{name}" for name in entry.ours), tuple(map(rename, entry.theirs)))
        yield replace(entry, ours=named[0], theirs=named[1])
