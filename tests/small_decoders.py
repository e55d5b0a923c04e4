"""Decoders of `transformers` in small, by name: every branch of a family's config that changes the graph or the names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

IDS = {"vocab_size": 103, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
OLD = {**IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
"""Sizes under the names of GPT-2's time."""
SMALL = {
    **IDS,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 56,
    "max_position_embeddings": 64,
}
FLAT = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
"""With as many key/value heads as others."""


def make(family: str, **config: Any) -> Callable[[], Any]:
    """`make("OPT", ...)` builds the causal language model of an OPTConfig."""

    def build() -> Any:
        import transformers

        return transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{family}Config")(**config))

    return build


def scaled(**rope: Any) -> Callable[[], Any]:
    return make("Llama", **SMALL, rope_parameters={"rope_theta": 500.0, **rope})


DECODERS: dict[str, Callable[[], Any]] = {
    "gpt1": make("OpenAIGPT", **OLD),
    "opt": make("OPT", **FLAT | {"hidden_size": 32, "num_attention_heads": 4}, ffn_dim=48),
    "opt_350m": make("OPT", **FLAT, ffn_dim=56, do_layer_norm_before=False, word_embed_proj_dim=24),
    "opt_galactica": make(
        "OPT", **FLAT, ffn_dim=56, activation_function="gelu", enable_bias=False, layer_norm_elementwise_affine=False
    ),
    "gpt_neox": make("GPTNeoX", **FLAT, rotary_pct=0.25, rotary_emb_base=500),
    "gpt_neox_serial": make("GPTNeoX", **FLAT, use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True),
    "gptj": make("GPTJ", **OLD, rotary_dim=4),
    "codegen": make("CodeGen", **OLD, rotary_dim=4, n_inner=40),
    "phi": make("Phi", **SMALL, rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}),
    "bloom": make("Bloom", **IDS, hidden_size=48, n_layer=2, n_head=6),
    "falcon_7b": make("Falcon", **FLAT),
    "falcon_40b": make("Falcon", **FLAT, new_decoder_architecture=True, num_kv_heads=2, ffn_hidden_size=40),
    "falcon_11b": make("Falcon", **FLAT, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1),
    "falcon_rw": make("Falcon", **FLAT, multi_query=False, parallel_attn=False, bias=True, tie_word_embeddings=False),
    "llama_linear": scaled(rope_type="linear", factor=2.0),
    "llama_3_1": scaled(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
    ),
    "llama_yarn": scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=16),
    "llama_yarn_said": scaled(
        rope_type="yarn",
        factor=4.0,
        original_max_position_embeddings=64,
        beta_fast=20,
        beta_slow=2,
        mscale=0.7,
        mscale_all_dim=0.5,
        truncate=False,
    ),
    "llama_dynamic": make(
        "Llama",
        **SMALL | {"max_position_embeddings": 32},
        rope_parameters={"rope_type": "dynamic", "factor": 3.0, "rope_theta": 500.0},
    ),
    "llama_biased": make("Llama", **SMALL, attention_bias=True, mlp_bias=True, head_dim=12, hidden_act="gelu"),
    "mistral": make("Mistral", **SMALL, sliding_window=5),
    "mistral_full": make("Mistral", **SMALL, sliding_window=None, head_dim=12),
    "qwen2": make("Qwen2", **SMALL),
    "qwen2_windows": make(
        "Qwen2", **SMALL | {"num_hidden_layers": 3}, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3": make("Qwen3", **SMALL, head_dim=12, tie_word_embeddings=True),
    "qwen3_biased": make("Qwen3", **SMALL, head_dim=8, attention_bias=True, rms_norm_eps=1e-3),
    "gemma": make("Gemma", **SMALL | {"num_key_value_heads": 1}, head_dim=12),
    "gemma2": make(
        "Gemma2",
        **SMALL | {"num_hidden_layers": 4},
        head_dim=12,
        sliding_window=5,
        query_pre_attn_scalar=20,
        final_logit_softcapping=2.0,
        attn_logit_softcapping=1.5,
    ),
    "internlm3": make("InternLM3", **SMALL, head_dim=12),
    "internlm3_biased": make("InternLM3", **SMALL, head_dim=8, qkv_bias=True, bias=True),
    "glm": make("Glm", **SMALL, head_dim=8, rms_norm_eps=1e-5),
    "glm_plain": make("Glm", **SMALL, head_dim=12, attention_bias=False, partial_rotary_factor=1.0),
}
