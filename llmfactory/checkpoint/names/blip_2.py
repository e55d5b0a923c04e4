"""BLIP-2 (Li et al. 2023) with a decoder: EVA's vision encoder, a Q-Former without text, a decoder of any family."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, Inexpressible, joined, linear
from llmfactory.checkpoint.names.language import decoder_of, family_for, language_entries
from llmfactory.checkpoint.names.reading import activation, activation_name, defaults, expect, refuse, wanted
from llmfactory.checkpoint.names.xlnet import reshaped
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import PreNorm
from llmfactory.model.connector.spec import QFormer
from llmfactory.model.embedding.spec import Patch
from llmfactory.model.ffn.spec import Mlp
from llmfactory.model.norm.spec import LayerNorm
from llmfactory.model.position.spec import Learned
from llmfactory.model.spec import ModelSpec, Multimodal, VisionSpec


class Blip2(Family):
    """Dropout is a matter of training and is not taken over; nor are the parts that only retrieval uses."""

    types = ("blip-2",)

    def spec(self, config: Config) -> ModelSpec:
        seen, queries = config["vision_config"], config["qformer_config"]
        refuse(seen, qkv_bias=True)
        refuse(queries, hidden_act="gelu", use_qformer_text_input=False)
        return Multimodal(
            **decoder_of(config["text_config"]),
            vision=VisionSpec(
                dim=seen["hidden_size"],
                n_layers=seen["num_hidden_layers"],
                norm=LayerNorm(eps=seen.get("layer_norm_eps", 1e-6)),
                position=Learned(),
                attention=Gqa(n_heads=seen["num_attention_heads"], bias=True),
                ffn=Mlp(hidden=seen["intermediate_size"], activation=activation(seen.get("hidden_act", "gelu"))),
                block=PreNorm(),
                embedding=Patch(image_size=seen["image_size"], patch_size=seen["patch_size"], bias=True),
            ),
            connector=QFormer(
                n_queries=config["num_query_tokens"],
                dim=queries["hidden_size"],
                n_layers=queries["num_hidden_layers"],
                n_heads=queries["num_attention_heads"],
                hidden=queries["intermediate_size"],
                norm=LayerNorm(eps=queries.get("layer_norm_eps", 1e-12)),
                cross_every=queries.get("cross_attention_frequency", 2),
            ),
            image_token=config["image_token_index"],
        )

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = wanted(spec, Multimodal)
        queries = expect(model.connector, QFormer)
        norm = expect(queries.norm, LayerNorm)
        defaults(norm, "eps")
        return {
            "model_type": "blip-2",
            "architectures": ["Blip2ForConditionalGeneration"],
            "vision_config": self._vision(model.vision),
            "qformer_config": {
                "model_type": "blip_2_qformer",
                "hidden_size": queries.dim,
                "num_hidden_layers": queries.n_layers,
                "num_attention_heads": queries.n_heads,
                "intermediate_size": queries.hidden,
                "layer_norm_eps": norm.eps,
                "cross_attention_frequency": queries.cross_every,
                "encoder_hidden_size": model.vision.dim,
            },
            "text_config": family_for(model).config(model.language),
            "num_query_tokens": queries.n_queries,
            "image_token_index": model.image_token,
        }

    def _vision(self, vision: VisionSpec) -> dict[str, Any]:
        defaults(vision, "dropout", "depth_scaled_init")
        expect(vision.block, PreNorm)
        defaults(expect(vision.position, Learned))
        attention, norm, ffn = expect(vision.attention, Gqa, bias=True), expect(vision.norm, LayerNorm), expect(vision.ffn, Mlp)
        defaults(attention, "bias", "dropout")
        defaults(norm, "eps")
        defaults(ffn)
        embedding = expect(vision.embedding, Patch, bias=True)
        defaults(embedding, "bias")
        if vision.others:
            raise Inexpressible("its vision encoder's layers are of several kinds")
        return {
            "model_type": "blip_2_vision_model",
            "hidden_size": vision.dim,
            "num_hidden_layers": vision.n_layers,
            "num_attention_heads": attention.n_heads,
            "intermediate_size": ffn.hidden,
            "hidden_act": activation_name(ffn.activation),
            "layer_norm_eps": norm.eps,
            "image_size": embedding.image_size,
            "patch_size": embedding.patch_size,
            "qkv_bias": True,
        }

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = wanted(spec, Multimodal)
        yield from eva_entries(model.vision, "vision", "vision_model")
        yield from q_former_entries(expect(model.connector, QFormer))
        yield from language_entries(model, "decoder", lambda name: f"language_model.{name}")


def eva_entries(vision: VisionSpec, ours: str, theirs: str) -> Iterator[Entry]:
    """The vision encoder: q, k and v in one matrix, vectors of the class and of the places with a dimension more."""
    dim = vision.dim
    yield reshaped(f"{ours}.embedding.first", f"{theirs}.embeddings.class_embedding", (1, 1, dim))
    places = f"{theirs}.embeddings.position_embedding"
    yield reshaped(f"{ours}.tower.position.weight", places, (1, -1, dim), (-1, dim))
    yield from linear(f"{ours}.embedding.squares", f"{theirs}.embeddings.patch_embedding", bias=True)
    for layer in range(vision.n_layers):
        block, other = f"{ours}.tower.blocks.{layer}", f"{theirs}.encoder.layers.{layer}"
        yield from linear(f"{block}.attention_norm", f"{other}.layer_norm1", bias=True)
        for kind in ("weight", "bias"):
            yield joined([f"{block}.attention.{name}.{kind}" for name in "qkv"], f"{other}.self_attn.qkv.{kind}", [dim] * 3)
        yield from linear(f"{block}.attention.o", f"{other}.self_attn.projection", bias=True)
        yield from linear(f"{block}.ffn_norm", f"{other}.layer_norm2", bias=True)
        yield from linear(f"{block}.ffn.up", f"{other}.mlp.fc1", bias=True)
        yield from linear(f"{block}.ffn.down", f"{other}.mlp.fc2", bias=True)
    yield from linear(f"{ours}.tower.norm", f"{theirs}.post_layernorm", bias=True)


def q_former_entries(queries: QFormer) -> Iterator[Entry]:
    """The connector."""
    yield reshaped("connector.queries", "query_tokens", (1, queries.n_queries, queries.dim), (queries.n_queries, queries.dim))
    yield from linear("connector.norm", "qformer.layernorm", bias=True)
    for layer in range(queries.n_layers):
        block, other = f"connector.blocks.{layer}", f"qformer.encoder.layer.{layer}"
        parts = {"attention": "attention"} | ({"cross": "crossattention"} if layer % queries.cross_every == 0 else {})
        for part, long in parts.items():
            for name, matrix in (("q", "query"), ("k", "key"), ("v", "value")):
                yield from linear(f"{block}.{part}.{name}", f"{other}.{long}.attention.{matrix}", bias=True)
            yield from linear(f"{block}.{part}.o", f"{other}.{long}.output.dense", bias=True)
            yield from linear(f"{block}.{part}_norm", f"{other}.{long}.output.LayerNorm", bias=True)
        yield from linear(f"{block}.ffn.up", f"{other}.intermediate_query.dense", bias=True)
        yield from linear(f"{block}.ffn.down", f"{other}.output_query.dense", bias=True)
        yield from linear(f"{block}.ffn_norm", f"{other}.output_query.LayerNorm", bias=True)
    yield from linear("connector.out", "language_projection", bias=True)
