"""Scaling of rotary positions in GGUF: keys of the metadata, and Llama 3's as a tensor of factors.

Llama 3's scaling (llama.cpp, convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors): the file holds what each frequency is
divided by, 1 where the wave length is short, `factor` where it is long, a blend between. The four numbers behind it are not in
the file; they are found again among those that published models have.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

from llmfactory.checkpoint.names.family import Config, Inexpressible
from llmfactory.core.errors import UserError
from llmfactory.core.gguf_file import GgufFile

KIND, FACTOR, ORIGINAL = "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"
FINETUNED = "rope.scaling.finetuned"
BETAS = {"beta_fast": "rope.scaling.yarn_beta_fast", "beta_slow": "rope.scaling.yarn_beta_slow"}
SCALING = (KIND, FACTOR, ORIGINAL, FINETUNED, *BETAS.values())
"""Keys that are understood."""
YARN = {"rope_type", "factor", "original_max_position_embeddings", "rope_theta", "truncate", *BETAS}
"""What a config may say of YaRN that GGUF can say too."""
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Of every published Llama 3."""


def scaling_of(own: Mapping[str, Any]) -> dict[str, Any] | None:
    """As `rope_scaling` of a config.json; None: the metadata say none. `own`: metadata without the architecture's name."""
    kind = own.get(KIND, "none")
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": own.get(FACTOR, 1.0)}
    if kind == "yarn" and ORIGINAL in own:
        betas = {key: own[name] for key, name in BETAS.items() if name in own}
        return {"rope_type": "yarn", "factor": own[FACTOR], "original_max_position_embeddings": own[ORIGINAL], **betas}
    raise UserError(f"{KIND}={kind!r} has no counterpart here")


def scaling_metadata(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Keys for the `rope_parameters` of a config.json. Raises Inexpressible."""
    kind = parameters.get("rope_type", "default")
    if kind in ("default", "llama3"):
        return {}
    if kind == "linear":
        return {KIND: "linear", FACTOR: float(parameters["factor"])}
    if kind == "yarn" and not set(parameters) - YARN:
        betas = {name: float(parameters[key]) for key, name in BETAS.items() if parameters.get(key) is not None}
        trained = int(parameters["original_max_position_embeddings"])
        return {KIND: "yarn", FACTOR: float(parameters["factor"]), ORIGINAL: trained, **betas}
    raise Inexpressible(f"GGUF cannot say rope_type={kind!r} with {', '.join(parameters)}")


def frequency_factors(config: Config) -> list[float] | None:
    """What each frequency is divided by, of a config with Llama 3's scaling."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if parameters.get("rope_type") != "llama3":
        return None
    theta = float(parameters.get("rope_theta") or config.get("rope_theta") or 10000.0)
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return _factors(theta, head, parameters)


def published_llama3(factor: float) -> dict[str, Any]:
    """The `rope_scaling` of the published models that stretch by this factor."""
    return {"rope_type": "llama3", "factor": factor, **LLAMA3}


def _factors(theta: float, head: int, parameters: Mapping[str, Any]) -> list[float]:
    factor, low, high = (float(parameters[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = parameters["original_max_position_embeddings"]
    found = []
    for index in range(0, head, 2):
        wave = 2 * math.pi * theta ** (index / head)
        if wave < context / high:
            found.append(1.0)
        elif wave > context / low:
            found.append(factor)
        else:
            blend = (context / wave - low) / (high - low)
            found.append(1 / ((1 - blend) / factor + blend))
    return found


def llama3_of(file: GgufFile, own: Mapping[str, Any]) -> dict[str, Any]:
    """The `rope_scaling` whose factors stand in the file."""
    stored = file.tensors["rope_freqs.weight"]
    if stored.dtype != "F32":
        raise UserError(f"{file.path}: rope_freqs.weight of {stored.dtype} has no counterpart here")
    with file.path.open("rb") as content:
        content.seek(stored.offset)
        factors = struct.unpack(f"<{stored.size // 4}f", content.read(stored.size))
    parameters = published_llama3(max(factors))
    expected = _factors(own.get("rope.freq_base", 10000.0), 2 * len(factors), parameters)
    if any(abs(a - b) > 1e-4 * b for a, b in zip(factors, expected, strict=True)):
        raise UserError(f"{file.path}: the factors in rope_freqs.weight are not those of Llama 3's scaling")
    return parameters
