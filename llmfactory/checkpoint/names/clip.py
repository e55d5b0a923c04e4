"""CLIP's vision encoder (Radford et al. 2021), as a part of multimodal models: pre-norm blocks over normalized embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, linear, same
from llmfactory.checkpoint.names.reading import activation, activation_name, defaults, expect, refuse
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import PreNorm
from llmfactory.model.embedding.spec import Patch
from llmfactory.model.ffn.spec import Mlp
from llmfactory.model.norm.spec import LayerNorm
from llmfactory.model.position.spec import Learned
from llmfactory.model.spec import VisionSpec

KIND = "clip_vision_model"


def vision_spec(config: Config, layers_used: int, keep_class: bool) -> VisionSpec:
    """Of a `vision_config`. Dropout is a matter of training and is not taken over."""
    refuse(config, model_type=KIND)
    return VisionSpec(
        dim=config["hidden_size"],
        n_layers=config["num_hidden_layers"],
        norm=LayerNorm(eps=config.get("layer_norm_eps", 1e-5)),
        position=Learned(),
        attention=Gqa(n_heads=config["num_attention_heads"], bias=True),
        ffn=Mlp(hidden=config["intermediate_size"], activation=activation(config.get("hidden_act", "quick_gelu"))),
        block=PreNorm(),
        embedding=Patch(image_size=config["image_size"], patch_size=config["patch_size"], channels=config.get("num_channels", 3)),
        embedding_norm=True,
        layers_used=layers_used,
        keep_class=keep_class,
    )


def vision_config(vision: VisionSpec) -> dict[str, Any]:
    """The `vision_config`, without which layer's features are taken. Raises Inexpressible."""
    expect(vision, VisionSpec, embedding_norm=True)
    expect(vision.block, PreNorm)
    defaults(vision, "embedding_norm", "layers_used", "keep_class", "dropout", "depth_scaled_init")
    defaults(expect(vision.position, Learned))
    embedding = expect(vision.embedding, Patch)
    defaults(embedding, "channels")
    attention, norm, ffn = expect(vision.attention, Gqa), expect(vision.norm, LayerNorm), expect(vision.ffn, Mlp)
    expect(attention, Gqa, bias=True)
    defaults(attention, "bias", "dropout")
    defaults(norm, "eps")
    defaults(ffn)
    return {
        "model_type": KIND,
        "hidden_size": vision.dim,
        "num_hidden_layers": vision.n_layers,
        "num_attention_heads": attention.n_heads,
        "intermediate_size": ffn.hidden,
        "hidden_act": activation_name(ffn.activation),
        "layer_norm_eps": norm.eps,
        "image_size": embedding.image_size,
        "patch_size": embedding.patch_size,
        "num_channels": embedding.channels,
    }


def vision_entries(vision: VisionSpec, ours: str, theirs: str) -> Iterator[Entry]:
    """Under the names of the two models' vision encoders."""
    yield same(f"{ours}.embedding.first", f"{theirs}.embeddings.class_embedding")
    yield same(f"{ours}.embedding.squares.weight", f"{theirs}.embeddings.patch_embedding.weight")
    yield same(f"{ours}.tower.position.weight", f"{theirs}.embeddings.position_embedding.weight")
    yield from linear(f"{ours}.embedding_norm", f"{theirs}.pre_layrnorm", bias=True)
    for layer in range(vision.n_layers):
        block, other = f"{ours}.tower.blocks.{layer}", f"{theirs}.encoder.layers.{layer}"
        yield from linear(f"{block}.attention_norm", f"{other}.layer_norm1", bias=True)
        for name, long in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj")):
            yield from linear(f"{block}.attention.{name}", f"{other}.self_attn.{long}", bias=True)
        yield from linear(f"{block}.ffn_norm", f"{other}.layer_norm2", bias=True)
        yield from linear(f"{block}.ffn.up", f"{other}.mlp.fc1", bias=True)
        yield from linear(f"{block}.ffn.down", f"{other}.mlp.fc2", bias=True)
    yield from linear(f"{ours}.tower.norm", f"{theirs}.post_layernorm", bias=True)
