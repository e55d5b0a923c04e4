"""GPT-1 (Radford et al. 2018): post-norm blocks, and no norm after the last; tensors of a block as in GPT-2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, same
from llmfactory.checkpoint.names.gpt2 import block_entries
from llmfactory.checkpoint.names.reading import decoder, expect, said
from llmfactory.core.errors import UserError
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import PostNorm
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Activation, Mlp
from llmfactory.model.head.spec import Lm
from llmfactory.model.norm.spec import LayerNorm
from llmfactory.model.position.spec import Learned
from llmfactory.model.spec import DecoderOnly, ModelSpec

ACTIVATIONS = {"gelu": Activation.gelu_tanh, "relu": Activation.relu, "silu": Activation.silu, "swish": Activation.silu}
"""What `afn` means: its `gelu` is the tanh approximation."""


class OpenaiGpt(Family):
    types = ("openai-gpt",)
    ignored = (r"(transformer\.)?h\.\d+\.attn\.bias",)

    def spec(self, config: Config) -> ModelSpec:
        name = config.get("afn", "gelu")
        if name not in ACTIVATIONS:
            raise UserError(f"afn={name!r} in config.json has no counterpart here: there are {', '.join(ACTIVATIONS)}")
        return DecoderOnly(
            vocab_size=config["vocab_size"],
            dim=config["n_embd"],
            n_layers=config["n_layer"],
            max_positions=config["n_positions"],
            init_std=config.get("initializer_range", 0.02),
            norm=LayerNorm(eps=config.get("layer_norm_epsilon", 1e-5)),
            position=Learned(),
            attention=Gqa(n_heads=config["n_head"], bias=True),
            ffn=Mlp(hidden=4 * config["n_embd"], activation=ACTIVATIONS[name]),
            block=PostNorm(),
            embedding=Token(),
            head=Lm(tied=config.get("tie_word_embeddings", True)),
        )

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = decoder(spec, block=PostNorm)
        said(model.embedding, Token)
        said(model.position, Learned)
        ffn = said(model.ffn, Mlp, hidden=4 * model.dim, activation=tuple(ACTIVATIONS.values()))
        return {
            "model_type": "openai-gpt",
            "architectures": ["OpenAIGPTLMHeadModel"],
            "vocab_size": model.vocab_size,
            "n_embd": model.dim,
            "n_layer": model.n_layers,
            "n_head": said(model.attention, Gqa, bias=True).n_heads,
            "n_positions": model.max_positions,
            "afn": next(name for name, ours in ACTIVATIONS.items() if ours is ffn.activation),
            "layer_norm_epsilon": said(model.norm, LayerNorm, "eps").eps,
            "initializer_range": model.init_std,
            "tie_word_embeddings": said(model.head, Lm).tied,
        }

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = decoder(spec)
        yield same("embedding.weight", "transformer.tokens_embed.weight")
        yield same("position.weight", "transformer.positions_embed.weight")
        for layer in range(model.n_layers):
            yield from block_entries(f"blocks.{layer}", f"transformer.h.{layer}", model.dim)
        if not expect(model.head, Lm).tied:
            yield same("head.weight", "lm_head.weight")
