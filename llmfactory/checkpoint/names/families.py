"""All families, by `model_type`."""

from __future__ import annotations

from llmfactory.checkpoint.names.family import Config, Family
from llmfactory.checkpoint.names.bart import Bart
from llmfactory.checkpoint.names.gpt2 import Gpt2
from llmfactory.checkpoint.names.llama import Llama
from llmfactory.checkpoint.names.mamba import Mamba
from llmfactory.checkpoint.names.mixtral import Mixtral
from llmfactory.checkpoint.names.qwen2_moe import Qwen2Moe
from llmfactory.checkpoint.names.t5 import T5
from llmfactory.core.errors import UserError

FAMILIES: tuple[Family, ...] = (
    Bart(),
    Gpt2(),
    Llama(),
    T5(),
    Mamba(),
    Mixtral(),
    Qwen2Moe(),
)


def family_of(config: Config) -> Family:
    """The family of a `config.json`."""
    kind = config.get("model_type")
    for family in FAMILIES:
        if kind in family.types:
            return family
    known = ", ".join(sorted(name for family in FAMILIES for name in family.types))
    raise UserError(f"model_type {kind!r} is no family that is known here: there are {known}")
