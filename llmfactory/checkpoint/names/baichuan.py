"""Baichuan and Baichuan 2 (Yang et al. 2023): LLaMA with q, k and v in one matrix, published with code of its own.

The 13B have ALiBi instead of rotary positions; their config says `model_max_length` where that of the 7B says
`max_position_embeddings`. In the second generation the rows of the head's matrix have length one; its config says so by nothing
but its vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, Inexpressible, joined, same
from llmfactory.checkpoint.names.llama import ffn_entries, llama_spec
from llmfactory.checkpoint.names.reading import activation_name, decoder, expect, refuse, said
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import PreNorm
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Glu
from llmfactory.model.head.spec import HeadSpec, Lm, LmUnitRows
from llmfactory.model.norm.spec import RmsNorm
from llmfactory.model.position.spec import Alibi, Rope
from llmfactory.model.spec import ModelSpec

SECOND = 125_696
"""Vocabulary of the second generation."""


class Baichuan(Family):
    types = ("baichuan",)
    own_code = True
    ignored = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, tie_word_embeddings=False)
        head: HeadSpec = LmUnitRows() if config["vocab_size"] == SECOND else Lm(tied=False)
        attention = Gqa(n_heads=config["num_attention_heads"])
        if config.get("max_position_embeddings"):
            return llama_spec(config, attention=attention, position=Rope(), head=head)
        sizes = {**config, "max_position_embeddings": config["model_max_length"]}
        return llama_spec(sizes, attention=attention, position=Alibi(), head=head)

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = decoder(spec, block=PreNorm)
        said(model.embedding, Token)
        said(model.position, Alibi if isinstance(model.position, Alibi) else Rope)
        attention = said(model.attention, Gqa, n_kv_heads=(None, model.attention.n_heads))
        ffn, second = said(model.ffn, Glu), isinstance(model.head, LmUnitRows)
        if not second:
            said(model.head, Lm, tied=False)
        if second != (model.vocab_size == SECOND):
            raise Inexpressible(f"this family knows a head whose rows have length one by its vocabulary of {SECOND} ids")
        length = "model_max_length" if isinstance(model.position, Alibi) else "max_position_embeddings"
        return {
            "model_type": "baichuan",
            "architectures": ["BaichuanForCausalLM"],
            "vocab_size": model.vocab_size,
            "hidden_size": model.dim,
            "num_hidden_layers": model.n_layers,
            "num_attention_heads": attention.n_heads,
            "intermediate_size": ffn.hidden,
            "hidden_act": activation_name(ffn.activation),
            length: model.max_positions,
            "rms_norm_eps": said(model.norm, RmsNorm, "eps").eps,
            "initializer_range": model.init_std,
            "tie_word_embeddings": False,
        }

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = decoder(spec)
        yield same("embedding.weight", "model.embed_tokens.weight")
        for layer in range(model.n_layers):
            ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
            yield joined(
                [f"{ours}.attention.{name}.weight" for name in "qkv"], f"{theirs}.self_attn.W_pack.weight", [model.dim] * 3
            )
            yield same(f"{ours}.attention.o.weight", f"{theirs}.self_attn.o_proj.weight")
            yield same(f"{ours}.attention_norm.weight", f"{theirs}.input_layernorm.weight")
            yield same(f"{ours}.ffn_norm.weight", f"{theirs}.post_attention_layernorm.weight")
            yield from ffn_entries(ours, theirs, expect(model.ffn, Glu))
        yield same("norm.weight", "model.norm.weight")
        yield same("head.rows" if isinstance(model.head, LmUnitRows) else "head.weight", "lm_head.weight")
