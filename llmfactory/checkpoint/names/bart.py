"""BART (Lewis et al. 2020): post-norm blocks with biases, learned positions from row 2 of their tables on, normalized embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, Inexpressible, linear, same
from llmfactory.checkpoint.names.reading import activation, activation_name, defaults, expect, refuse, wanted
from llmfactory.model.attention.spec import Cross, Gqa
from llmfactory.model.block.spec import PostNorm
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Mlp
from llmfactory.model.head.spec import Lm
from llmfactory.model.norm.spec import LayerNorm
from llmfactory.model.position.spec import Learned
from llmfactory.model.spec import EncoderDecoder, ModelSpec, TowerSpec

OFFSET = 2
"""Rows of the position tables that stand before the first position."""


class Bart(Family):
    """Dropout is a matter of training and is not taken over."""

    types = ("bart",)
    objective = "denoising"
    # The bias of the logits is a constant of the code, zero in BART.
    ignored = (r"final_logits_bias", r"model\.(encoder|decoder)\.embed_tokens\.weight", r"lm_head\.weight")

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, is_decoder=False, is_encoder_decoder=True, encoder_layerdrop=0.0, decoder_layerdrop=0.0)
        refuse(config, normalize_before=False, add_final_layer_norm=False, normalize_embedding=True, add_bias_logits=False)
        refuse(config, static_position_embeddings=False, extra_pos_embeddings=OFFSET, tie_word_embeddings=True)
        return EncoderDecoder(
            vocab_size=config["vocab_size"],
            dim=config["d_model"],
            max_positions=config["max_position_embeddings"],
            init_std=config.get("init_std", 0.02),
            embedding=Token(dim_power=0.5 if config.get("scale_embedding") else 0.0),
            embedding_norm=True,
            encoder=side(config, "encoder"),
            decoder=side(config, "decoder"),
            head=Lm(tied=True),
        )

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        both = wanted(spec, EncoderDecoder)
        encoder, decoder = both.encoder, both.decoder
        for tower in (encoder, decoder):
            expect(tower.block, PostNorm)
            defaults(expect(tower.norm, LayerNorm))
            expect(tower.position, Learned, offset=OFFSET)
            defaults(expect(tower.attention, Gqa, bias=True), "bias", "dropout")
            expect(tower.ffn, Mlp, bias=True)
            defaults(tower, "depth_scaled_init", "dropout", "cross")
            if tower.others:
                raise Inexpressible("its layers are of several kinds")
        cross = decoder.cross
        if cross is None or cross.n_heads != decoder.attention.n_heads:
            raise Inexpressible("cross-attention has not the heads of the decoder's own")
        defaults(expect(cross, Cross, bias=True), "bias", "dropout")
        first, second = expect(encoder.ffn, Mlp), expect(decoder.ffn, Mlp)
        if first.activation is not second.activation:
            raise Inexpressible("the nonlinearities of its encoder and of its decoder differ")
        embedding = expect(both.embedding, Token, dim_power=(0.0, 0.5))
        defaults(embedding, "dim_power")
        defaults(expect(both.head, Lm, tied=True))
        defaults(both, "init_std", "embedding_norm")
        if not both.embedding_norm:
            raise Inexpressible("its embeddings are not normalized")
        return {
            "model_type": "bart",
            "architectures": ["BartForConditionalGeneration"],
            "is_encoder_decoder": True,
            "vocab_size": both.vocab_size,
            "d_model": both.dim,
            "max_position_embeddings": both.max_positions,
            "encoder_layers": encoder.n_layers,
            "encoder_attention_heads": encoder.attention.n_heads,
            "encoder_ffn_dim": first.hidden,
            "decoder_layers": decoder.n_layers,
            "decoder_attention_heads": decoder.attention.n_heads,
            "decoder_ffn_dim": second.hidden,
            "activation_function": activation_name(first.activation),
            "scale_embedding": embedding.dim_power != 0,
            "init_std": both.init_std,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 2,
        }

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        both = wanted(spec, EncoderDecoder)
        yield same("embedding.weight", "model.shared.weight")
        for name, tower in (("encoder", both.encoder), ("decoder", both.decoder)):
            yield same(f"{name}.position.weight", f"model.{name}.embed_positions.weight")
            yield from linear(f"{name}.embedding_norm", f"model.{name}.layernorm_embedding", bias=True)
            parts = {"attention": "self_attn"} | ({"cross": "encoder_attn"} if name == "decoder" else {})
            for layer in range(tower.n_layers):
                ours, theirs = f"{name}.blocks.{layer}", f"model.{name}.layers.{layer}"
                for part, other in parts.items():
                    yield from linear(f"{ours}.{part}_norm", f"{theirs}.{other}_layer_norm", bias=True)
                    for matrix, long in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj")):
                        yield from linear(f"{ours}.{part}.{matrix}", f"{theirs}.{other}.{long}", bias=True)
                yield from linear(f"{ours}.ffn_norm", f"{theirs}.final_layer_norm", bias=True)
                yield from linear(f"{ours}.ffn.up", f"{theirs}.fc1", bias=True)
                yield from linear(f"{ours}.ffn.down", f"{theirs}.fc2", bias=True)


def side(config: Config, name: str) -> TowerSpec:
    """The encoder or the decoder."""
    heads = config[f"{name}_attention_heads"]
    return TowerSpec(
        n_layers=config[f"{name}_layers"],
        norm=LayerNorm(),
        position=Learned(offset=OFFSET),
        attention=Gqa(n_heads=heads, bias=True),
        ffn=Mlp(hidden=config[f"{name}_ffn_dim"], activation=activation(config.get("activation_function", "gelu"))),
        block=PostNorm(),
        cross=Cross(n_heads=heads, bias=True) if name == "decoder" else None,
    )
