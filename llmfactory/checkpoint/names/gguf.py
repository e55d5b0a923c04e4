"""What the metadata of a GGUF file means as a `config.json`, and back.

So the family of the same model in the Hugging Face format reads it, and its table of names serves too: names of tensors go
through the table that the package `gguf` has for each architecture. Where llama.cpp's converter changes numbers on the way
(the order of q's and k's rows; [in, out] matrices), it is undone here. Source: convert_hf_to_gguf.py of llama.cpp.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmfactory.checkpoint.names.family import Config, Inexpressible
from llmfactory.checkpoint.names.gguf_rope import (
    SCALING,
    frequency_factors,
    llama3_of,
    published_llama3,
    scaling_metadata,
    scaling_of,
)
from llmfactory.core.errors import UserError
from llmfactory.core.gguf_file import GgufFile, package

if TYPE_CHECKING:
    from torch import Tensor

ARCHITECTURE = "general.architecture"
EMBEDDING, OUTPUT, FREQUENCIES = "token_embd.weight", "output.weight", "rope_freqs.weight"
LLAMA_KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
GPT2_KEYS = {
    "n_embd": "embedding_length",
    "n_layer": "block_count",
    "n_head": "attention.head_count",
    "n_inner": "feed_forward_length",
    "n_positions": "context_length",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}
OPTIONAL = ("attention.head_count_kv", "attention.key_length", "rope.freq_base")
"""Keys that a file may leave out; the family's own default counts then."""
NEUTRAL = {"expert_count": 0, "expert_used_count": 0, "tensor_data_layout": "Meta AI original pth", "attention.causal": True}
"""Keys that say nothing new with this value."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A value of `general.architecture`."""

    model_type: str
    """Of the same model in the Hugging Face format."""
    keys: Mapping[str, str]
    """Key of config.json -> key of the metadata, without the architecture in front."""
    implied: Mapping[str, Any] = field(default_factory=dict)
    """Keys of config.json that the architecture says by itself."""
    biases: Mapping[str, str] = field(default_factory=dict)
    """Key of config.json that says whether there are biases -> a tensor that is there if so."""
    interleaved: bool = False
    """The converter reorders q's and k's rows: from rotary halves to neighbouring pairs."""
    flipped: str = ""
    """Pattern of tensors that config.json's format stores as [in, out] and this one as [out, in]."""
    rotary: bool = True


ARCHITECTURES = {
    "llama": Architecture(
        "llama",
        LLAMA_KEYS,
        {"hidden_act": "silu"},
        {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"},
        interleaved=True,
    ),
    "qwen2": Architecture("qwen2", LLAMA_KEYS, {"hidden_act": "silu"}),
    "qwen3": Architecture("qwen3", LLAMA_KEYS, {"hidden_act": "silu"}, {"attention_bias": "blk.0.attn_q.bias"}),
    "gpt2": Architecture(
        "gpt2",
        GPT2_KEYS,
        {"activation_function": "gelu_new"},
        flipped=r".*\.(c_attn|c_proj|c_fc)\.weight",
        rotary=False,
    ),
}


def architecture_of(file: GgufFile) -> Architecture:
    name = file.metadata.get(ARCHITECTURE)
    if name not in ARCHITECTURES:
        raise UserError(
            f"{file.path}: the architecture {name!r} is none that is known here: there are {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def config_of(file: GgufFile) -> dict[str, Any]:
    """The config.json that says the same. Raises UserError for a key that has no counterpart: none is passed over."""
    architecture, name = architecture_of(file), str(file.metadata[ARCHITECTURE])
    if EMBEDDING not in file.tensors:
        raise UserError(f"{file.path} lacks the tensor {EMBEDDING}")
    prefix = f"{name}."
    own = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    if lacking := [theirs for theirs in architecture.keys.values() if theirs not in own and theirs not in OPTIONAL]:
        raise UserError(f"{file.path} lacks {prefix}{lacking[0]}")
    own["vocab_size"] = file.tensors[EMBEDDING].shape[0]
    says = {key: tensor in file.tensors for key, tensor in architecture.biases.items()}
    says["tie_word_embeddings"] = OUTPUT not in file.tensors
    llama3 = llama3_of(file, own) if FREQUENCIES in file.tensors else None
    try:
        return _config(architecture, own, says, llama3)
    except UserError as error:
        raise UserError(f"{file.path}: {prefix}{error}") from error


def config_from(metadata: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """What a file with this metadata will be read as; what its tensors will say stands in `config`, which they are made of."""
    name = metadata[ARCHITECTURE]
    architecture = ARCHITECTURES[name]
    own = {key.removeprefix(f"{name}."): value for key, value in metadata.items() if key != ARCHITECTURE}
    says = {key: config.get(key, False) for key in (*architecture.biases, "tie_word_embeddings")}
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    llama3 = published_llama3(parameters["factor"]) if parameters.get("rope_type") == "llama3" else None
    return _config(architecture, own, says, llama3)


def _config(
    architecture: Architecture, own: Mapping[str, Any], says: Mapping[str, bool], llama3: Mapping[str, Any] | None
) -> dict[str, Any]:
    """`own`: the metadata without the architecture in front; `says` and `llama3` (scaling of positions): what the tensors tell."""
    config = {key: _plain(own[name]) for key, name in architecture.keys.items() if name in own}
    config |= {"model_type": architecture.model_type, "vocab_size": own["vocab_size"], **architecture.implied, **says}
    known = {*architecture.keys.values(), "vocab_size"}
    if architecture.rotary:
        known |= {"rope.dimension_count", "attention.value_length", *SCALING}
        head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        for name in ("rope.dimension_count", "attention.value_length"):
            if own.get(name, head) != head:
                raise UserError(f"{name}={own[name]} beside heads of {head} has no counterpart here")
        if scaling := llama3 or scaling_of(own):
            config["rope_scaling"] = scaling
    for name, value in own.items():
        if name not in known and value != NEUTRAL.get(name):
            raise UserError(f"{name}={value!r} has no counterpart here")
    return config


def _plain(value: Any) -> Any:
    """A number as it was meant: the shortest decimal that is the same float32; one number for all layers."""
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise UserError(f"layers that differ ({value}) have no counterpart here")
        return _plain(value[0])
    if isinstance(value, float):
        exact = struct.pack("<f", value)
        return next(n for digits in range(1, 10) if struct.pack("<f", n := float(f"{value:.{digits}g}")) == exact)
    return value


def metadata_of(config: Config) -> dict[str, Any]:
    """The metadata of a model whose `config.json` this is, architecture included. Raises Inexpressible."""
    name = next((name for name, one in ARCHITECTURES.items() if one.model_type == config["model_type"]), None)
    if name is None:
        raise Inexpressible(f"GGUF has no architecture for {config['model_type']} here: there are {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    for key, value in architecture.implied.items():
        if config.get(key, value) != value:
            raise Inexpressible(f"{key}={config[key]!r}, where the GGUF architecture {name} means {value!r}")
    own = {theirs: config[key] for key, theirs in architecture.keys.items() if config.get(key) is not None}
    own["vocab_size"] = config["vocab_size"]
    if architecture.rotary:
        own["rope.dimension_count"] = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
        own["rope.freq_base"] = float(parameters.get("rope_theta") or config.get("rope_theta") or 10000.0)
        own |= scaling_metadata(parameters)
    if "attention.key_length" in own:
        own["attention.value_length"] = own["attention.key_length"]
    return {ARCHITECTURE: name, **{f"{name}.{key}": value for key, value in own.items()}}


def extra_tensors(config: Config) -> dict[str, list[float]]:
    """Tensors that stand in the file for what other formats say in numbers of the config."""
    factors = frequency_factors(config)
    return {} if factors is None else {FREQUENCIES: factors}


class Names:
    """Names and shapes of an architecture's tensors, between the Hugging Face format and GGUF."""

    def __init__(self, name: str, config: Config) -> None:
        gguf = package(f"the names of tensors in GGUF files of {name}")
        kind = next(kind for kind, label in gguf.MODEL_ARCH_NAMES.items() if label == name)
        architecture = ARCHITECTURES[name]
        layers = config.get("num_hidden_layers") or config["n_layer"]
        self.table = gguf.get_tensor_name_map(kind, layers)
        self.architecture = architecture
        heads = config.get("num_attention_heads") or config["n_head"]
        self.heads = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads}

    def to_gguf(self, name: str) -> str:
        """GGUF's name of a tensor."""
        found = self.table.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise Inexpressible(f"GGUF has no name for the tensor {name}")
        return str(found)

    def restore(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor as it is in the Hugging Face format, from what GGUF holds; `name` is the former's."""
        if heads := self._heads(name):
            return tensor.reshape(heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
        return tensor.T.contiguous() if self._is_flipped(name) else tensor

    def store(self, name: str, tensor: Tensor) -> Tensor:
        """The way back."""
        if heads := self._heads(name):
            return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
        return tensor.T.contiguous() if self._is_flipped(name) else tensor

    def _heads(self, name: str) -> int | None:
        """Of a tensor whose rows are reordered."""
        return self.heads.get(name.split(".")[-2]) if self.architecture.interleaved else None

    def _is_flipped(self, name: str) -> bool:
        return bool(self.architecture.flipped and re.fullmatch(self.architecture.flipped, name))
