"""XLNet (Yang et al. 2019): the matrices of attention as [dim, heads, head width], biases of the scores for each head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, linear, same
from llmfactory.checkpoint.names.reading import activation, activation_name, defaults, expect, refuse, wanted
from llmfactory.model.attention.spec import TwoStream as TwoStreamAttention
from llmfactory.model.block.spec import PostNorm
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Mlp
from llmfactory.model.head.spec import Lm
from llmfactory.model.norm.spec import LayerNorm
from llmfactory.model.position.spec import Relative
from llmfactory.model.spec import ModelSpec, TwoStream

if TYPE_CHECKING:
    from torch import Tensor

POSITIONS = 512
"""Tokens that XLNet was trained on; its distances have no end, so a config does not say it."""


class Xlnet(Family):
    """Dropout is a matter of training and is not taken over; nor are the lengths of memories, which whoever decodes decides on."""

    types = ("xlnet",)

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, attn_type="bi", bi_data=False, same_length=False, untie_r=True, tie_word_embeddings=True)
        refuse(config, d_head=config["d_model"] // config["n_head"])
        clamp = config.get("clamp_len", -1)
        return TwoStream(
            vocab_size=config["vocab_size"],
            dim=config["d_model"],
            n_layers=config["n_layer"],
            max_positions=POSITIONS,
            init_std=config.get("initializer_range", 0.02),
            norm=LayerNorm(eps=config.get("layer_norm_eps", 1e-12)),
            position=Relative(clamp=clamp if clamp > 0 else None),
            attention=TwoStreamAttention(n_heads=config["n_head"]),
            ffn=Mlp(hidden=config["d_inner"], activation=activation(config.get("ff_activation", "gelu"))),
            block=PostNorm(),
            embedding=Token(),
            head=Lm(tied=True, bias=True),
        )

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = wanted(spec, TwoStream, block=PostNorm)
        defaults(expect(model.embedding, Token))
        position = expect(model.position, Relative)
        defaults(position, "clamp", "dropout")
        defaults(expect(model.head, Lm, tied=True, bias=True), "bias")
        defaults(model, "init_std", "dropout", "depth_scaled_init")
        norm, ffn = expect(model.norm, LayerNorm), expect(model.ffn, Mlp)
        defaults(norm, "eps")
        defaults(ffn)
        attention = expect(model.attention, TwoStreamAttention, head_dim=None)
        return {
            "model_type": "xlnet",
            "architectures": ["XLNetLMHeadModel"],
            "vocab_size": model.vocab_size,
            "d_model": model.dim,
            "n_layer": model.n_layers,
            "n_head": attention.n_heads,
            "d_inner": ffn.hidden,
            "ff_activation": activation_name(ffn.activation),
            "attn_type": "bi",
            "clamp_len": -1 if position.clamp is None else position.clamp,
            "untie_r": True,
            "layer_norm_eps": norm.eps,
            "initializer_range": model.init_std,
            "mem_len": None,
            "tie_word_embeddings": True,
        }

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = wanted(spec, TwoStream)
        heads = model.attention.n_heads
        yield same("embedding.weight", "transformer.word_embedding.weight")
        yield reshaped("query", "transformer.mask_emb", (1, 1, model.dim))
        for layer in range(model.n_layers):
            ours, theirs = f"blocks.{layer}", f"transformer.layer.{layer}"
            for name in "qkvr":
                yield by_heads(f"{ours}.attention.{name}.weight", f"{theirs}.rel_attn.{name}", heads, flipped=True)
            yield by_heads(f"{ours}.attention.o.weight", f"{theirs}.rel_attn.o", heads, flipped=False)
            for name, other in (("content", "w"), ("distance", "r"), ("segment", "s")):
                yield same(f"{ours}.attention.{name}_bias", f"{theirs}.rel_attn.r_{other}_bias")
            yield paired([f"{ours}.attention.{name}_segment" for name in ("same", "other")], f"{theirs}.rel_attn.seg_embed")
            yield from linear(f"{ours}.attention_norm", f"{theirs}.rel_attn.layer_norm", bias=True)
            yield from linear(f"{ours}.ffn.up", f"{theirs}.ff.layer_1", bias=True)
            yield from linear(f"{ours}.ffn.down", f"{theirs}.ff.layer_2", bias=True)
            yield from linear(f"{ours}.ffn_norm", f"{theirs}.ff.layer_norm", bias=True)
        yield same("head.bias", "lm_loss.bias")


def reshaped(ours: str, theirs: str, shape: tuple[int, ...], own: tuple[int, ...] = (-1,)) -> Entry:
    """A tensor of our shape `own` that they store with further dimensions of one."""

    def flat(tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0].reshape(own)]

    def shaped(tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0].reshape(shape)]

    return Entry((ours,), (theirs,), flat, shaped)


def by_heads(ours: str, theirs: str, heads: int, *, flipped: bool) -> Entry:
    """A matrix that they store as [dim, heads, head width]; `flipped`: dim is what it takes, not what it gives."""

    def join(tensors: list[Tensor]) -> list[Tensor]:
        whole = tensors[0].flatten(1)
        return [whole.T.contiguous() if flipped else whole.contiguous()]

    def part(tensors: list[Tensor]) -> list[Tensor]:
        whole = tensors[0].T.contiguous() if flipped else tensors[0]
        return [whole.unflatten(1, (heads, -1)).contiguous()]  # type: ignore[no-untyped-call]

    return Entry((ours,), (theirs,), join, part)


def paired(ours: Sequence[str], theirs: str) -> Entry:
    """Tensors of ours that they store as one, with a first dimension more."""

    def apart(tensors: list[Tensor]) -> list[Tensor]:
        return [piece.contiguous() for piece in tensors[0]]

    def together(tensors: list[Tensor]) -> list[Tensor]:
        import torch

        return [torch.stack(tensors)]

    return Entry(tuple(ours), (theirs,), apart, together)
