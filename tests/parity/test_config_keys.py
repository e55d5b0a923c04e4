"""No key of a decoder's `config.json` that changes its numbers is passed over: it is read, or refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from small_decoders import DECODERS

from llmfactory.checkpoint.names.families import family_of
from llmfactory.checkpoint.names.family import Inexpressible
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.core.spec import Spec
from llmfactory.model.block.spec import DeepNorm, Parallel, PostNorm, PreNorm, Sandwich
from llmfactory.model.embedding.spec import Factorized, Token
from llmfactory.model.ffn.spec import Activation
from llmfactory.model.head.spec import Lm, LmUnitRows
from llmfactory.model.norm.spec import LayerNorm, RmsNorm
from llmfactory.model.position.scaling.spec import Ntk
from llmfactory.model.position.spec import Alibi, Learned, Rope

HARMLESS = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "layer_types", "rope_parameters"),
    # matters of training
    *(
        "attention_dropout",
        "hidden_dropout",
        "dropout",
        "classifier_dropout",
        "layerdrop",
        "attn_pdrop",
        "embd_pdrop",
        "resid_pdrop",
    ),
    # of other heads than a language model's
    *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout", "is_decoder"),
}
"""Keys without a say in the logits; the kinds of layers and the rotation have tests of their own."""
OVERRULED = {
    ("bloom", "pretraining_tp"): "counts with slow_but_exact, which is refused",
    ("codegen", "n_ctx"): "the library does not use it",
    ("opt", "intermediate_size"): "written by the library beside ffn_dim",
    ("falcon", "intermediate_size"): "written by the library beside ffn_hidden_size",
    **dict.fromkeys((("qwen2", "max_window_layers"), ("qwen3", "max_window_layers")), "layer_types says it"),
    **dict.fromkeys((("qwen2", "use_sliding_window"), ("qwen3", "use_sliding_window")), "layer_types says it"),
    ("falcon", "multi_query"): "counts in the older architecture",
    ("falcon", "num_kv_heads"): "counts in the newer architecture",
    ("falcon", "num_ln_in_parallel_attn"): "one is what the older architecture has",
}


def another(value: Any) -> Any:
    """A value of the same type that a model could have; None: there is no such thing to guess."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return 2 * value or 3
    if isinstance(value, float):
        return value / 2 + 0.25
    return ("silu" if value == "relu" else "relu") if isinstance(value, str) else None


@pytest.mark.parametrize("name", DECODERS)
def test_every_key_is_read_or_refused(name):
    from transformers import PreTrainedConfig

    general = set(PreTrainedConfig().to_dict()) - {"tie_word_embeddings"}
    with torch.device("meta"):
        config = DECODERS[name]().config.to_dict()
    family = family_of(config)
    base = family.spec(config)
    passed_over = []
    for key, value in config.items():
        if key in general or key in HARMLESS or (family.types[0], key) in OVERRULED or another(value) is None:
            continue
        try:
            if family.spec({**config, key: another(value)}) == base:
                passed_over.append(key)
        except (UserError, ConfigError):
            pass
    assert passed_over == []


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama_linear", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope_type='longrope'"),
        ("llama_linear", {"pretraining_tp": 2}, "pretraining_tp=2"),
        ("falcon_7b", {"alibi": True}, "alibi=True"),
        ("falcon_40b", {"parallel_attn": False}, "parallel_attn=False"),
        ("falcon_7b", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn=2"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        ("gemma2", {"sliding_window": None}, "sliding_window says no width"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm=True"),
        ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm=True"),
        ("codegen", {"n_head": 2, "rotary_dim": 4}, "n_head=2"),
        ("gpt1", {"afn": "quick_gelu"}, "afn='quick_gelu'"),
        ("qwen2", {"hidden_act": "xielu"}, "xielu"),
        ("internlm3", {"attention_bias": True}, "qkv_bias and bias differ"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm=True"),
    ],
)
def test_what_there_is_no_part_for_is_refused_by_name(name, changes, message):
    with torch.device("meta"):
        config = {**DECODERS[name]().config.to_dict(), **changes}
    with pytest.raises(UserError, match=message):
        family_of(config).spec(config)


def test_older_words_for_the_rotation():
    """`rope_scaling` with `type`, beside `rope_theta`, as files had it before `rope_parameters`."""
    with torch.device("meta"):
        new = DECODERS["llama_3_1"]().config.to_dict()
    parameters = dict(new["rope_parameters"])
    theta, kind = parameters.pop("rope_theta"), parameters.pop("rope_type")
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    family = family_of(new)
    assert family.spec({**old, "rope_theta": theta, "rope_scaling": {"type": kind, **parameters}}) == family.spec(new)
    assert family.spec({**old, "rope_theta": theta, "rope_scaling": None}) != family.spec(new)


TRAINING = {"init_std", "dropout", "depth_scaled_init"}
"""Fields of a spec that are no matter of a config."""
GUESSES = {
    int: (1, 2, 3, 6),
    float: (0.5, 2.0),
    bool: (True, False),
    type(None): (True, 2, 12, 0.5, RmsNorm()),
    Activation: tuple(Activation),
    LayerNorm: (RmsNorm(),),
    RmsNorm: (LayerNorm(), RmsNorm(eps=0.1, offset=0.5)),
    Rope: (Alibi(), Rope(theta=77.0, share=0.5, interleaved=True), Rope(scaling=Ntk(factor=2.0))),
    Alibi: (Rope(),),
    Learned: (Rope(), Learned(offset=1)),
    Token: (Token(scale=2.0), Factorized(width=5)),
    Lm: (Lm(tied=False, softcap=3.0), Lm(tied=False, scale=0.5), LmUnitRows()),
    **dict.fromkeys(
        (PreNorm, PostNorm, Parallel, Sandwich), (PreNorm(), PostNorm(), Sandwich(), Parallel(shared_norm=True), DeepNorm())
    ),
}
"""Values to put in the place of others, by their type."""


def changed(spec: Any) -> Iterator[tuple[str, Any]]:
    """The spec with one field changed at a time, parts within included."""
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        others = [(field.name, guess) for guess in GUESSES.get(type(value), ()) if guess != value]
        if isinstance(value, Spec):
            others += [(f"{field.name}.{path}", part) for path, part in changed(value)]
        for path, other in others:
            if path.rpartition(".")[2] not in TRAINING:
                with suppress(ConfigError, TypeError, AttributeError, ZeroDivisionError):  # there is no such model
                    yield path, dataclasses.replace(spec, **{field.name: other})


@pytest.mark.parametrize("name", DECODERS)
def test_what_is_written_says_all_of_the_model(name):
    """A model off the family's ways by one field is written so that it is read back the same, or refused; never written wrong."""
    with torch.device("meta"):
        config = DECODERS[name]().config.to_dict()
    family = family_of(config)
    said, refused = [], []
    for path, spec in changed(family.spec(config)):
        try:
            words = family.config(spec)
        except Inexpressible:
            refused.append(path)
            continue
        assert same_model(family.spec(words), spec), f"{path} is lost"
        said.append(path)
    assert said, "nothing was tried"
    assert refused, "nothing was refused"


def same_model(one: Any, other: Any) -> bool:
    """The same but for spelled-out usual values: as many key/value heads as others, the usual width of a head."""

    def plain(spec: Any) -> Any:
        attention = spec.attention
        words = {"n_kv_heads": attention.n_kv_heads or attention.n_heads, "head_dim": attention.head_width(spec.dim)}
        bias = attention.bias if attention.qkv_bias is None else attention.qkv_bias
        words["scale"] = words["head_dim"] ** -0.5 if attention.scale is None else attention.scale
        return dataclasses.replace(spec, attention=dataclasses.replace(attention, qkv_bias=bias, **words))

    return plain(one) == plain(other)
