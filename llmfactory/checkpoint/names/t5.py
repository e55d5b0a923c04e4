"""T5 (Raffel et al. 2020), its version 1.1 and FLAN: relative score biases, no biases elsewhere, unscaled scores.

The first version has a ReLU perceptron and one matrix for all embeddings and the logits, which are divided by sqrt(dim); version
1.1 has GEGLU and logits of their own. In a `config.json` the latter says `tie_word_embeddings=false`. Recent versions of
transformers write `scale_decoder_outputs` besides, because they tie the two at construction whatever the config says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.family import Config, Entry, Family, Inexpressible, same
from llmfactory.checkpoint.names.reading import activation, activation_name, defaults, expect, refuse, wanted
from llmfactory.model.attention.spec import Cross, Gqa
from llmfactory.model.block.spec import PreNorm
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Activation, FfnSpec, Glu, Mlp
from llmfactory.model.head.spec import Lm
from llmfactory.model.norm.spec import RmsNorm
from llmfactory.model.position.spec import T5Bias
from llmfactory.model.spec import EncoderDecoder, ModelSpec, TowerSpec

POSITIONS = 512
"""Tokens that T5 was trained on; a config need not say it, for the biases have no end."""


class T5(Family):
    types = ("t5",)
    ignored = (
        r"(encoder|decoder)\.embed_tokens\.weight",
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    )

    def spec(self, config: Config) -> ModelSpec:
        refuse(config, is_decoder=False, is_encoder_decoder=True)
        encoder = tower(config, config["num_layers"], feed_forward(config))
        decoder = tower(config, config.get("num_decoder_layers") or config["num_layers"], feed_forward(config), cross=True)
        tied = config.get("tie_word_embeddings", True)
        return model(config, encoder, decoder, tied, config.get("scale_decoder_outputs", tied))

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        both = wanted(spec, EncoderDecoder)
        for side in (both.encoder, both.decoder):
            if side.others:
                raise Inexpressible("its layers are of several kinds")
        if both.encoder.ffn != both.decoder.ffn:
            raise Inexpressible("the feed-forward parts of its encoder and of its decoder differ")
        return {
            **config_of(both, "t5", "T5ForConditionalGeneration"),
            "feed_forward_proj": feed_forward_words(both.encoder.ffn),
            "scale_decoder_outputs": expect(both.head, Lm).dim_power != 0,
        }

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        both = wanted(spec, EncoderDecoder)
        yield from outer_entries(both)
        for ours, theirs, last, ffn in blocks(both):
            yield from attention_entries(ours, theirs, last)
            names = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if isinstance(ffn, Glu) else {"up": "wi", "down": "wo"}
            for name, other in names.items():
                yield same(f"{ours}.ffn.{name}.weight", f"{theirs}.{last}.DenseReluDense.{other}.weight")


def feed_forward(config: Config) -> FfnSpec:
    """Of `feed_forward_proj`: an activation, or `gated-` and one, of which `gelu` is the tanh approximation."""
    gated, _, name = (config.get("feed_forward_proj") or "relu").rpartition("-")
    if gated:
        return Glu(hidden=config["d_ff"], activation=activation("gelu_new" if name == "gelu" else name))
    return Mlp(hidden=config["d_ff"], activation=activation(name), bias=False)


def feed_forward_words(ffn: FfnSpec) -> str:
    """`feed_forward_proj` of a feed-forward part."""
    if not isinstance(ffn, Glu):
        return activation_name(expect(ffn, Mlp, bias=False).activation)
    defaults(ffn)
    if ffn.activation is Activation.gelu:
        raise Inexpressible("its gates are the exact GELU, which this family takes for the tanh approximation")
    return "gated-gelu" if ffn.activation is Activation.gelu_tanh else f"gated-{activation_name(ffn.activation)}"


def tower(config: Config, n_layers: int, ffn: FfnSpec, cross: bool = False) -> TowerSpec:
    """One side. Dropout is a matter of training and is not taken over."""
    heads, dim = config["num_heads"], config["d_model"]
    attention = {"n_heads": heads, "scale": 1.0, "head_dim": None if config["d_kv"] * heads == dim else config["d_kv"]}
    return TowerSpec(
        n_layers=n_layers,
        norm=RmsNorm(eps=config.get("layer_norm_epsilon", 1e-6)),
        position=T5Bias(
            n_buckets=config.get("relative_attention_num_buckets", 32),
            max_distance=config.get("relative_attention_max_distance", 128),
        ),
        attention=Gqa(**attention),
        ffn=ffn,
        block=PreNorm(),
        cross=Cross(**attention) if cross else None,
        depth_scaled_init=False,
    )


def model(config: Config, encoder: TowerSpec, decoder: TowerSpec, tied: bool, scaled: bool) -> EncoderDecoder:
    return EncoderDecoder(
        vocab_size=config["vocab_size"],
        dim=config["d_model"],
        max_positions=config.get("n_positions") or POSITIONS,
        embedding=Token(),
        embedding_std=config.get("initializer_factor", 1.0),
        encoder=encoder,
        decoder=decoder,
        head=Lm(tied=tied, dim_power=-0.5 if scaled else 0.0),
    )


def config_of(spec: EncoderDecoder, kind: str, architecture: str) -> dict[str, Any]:
    """What T5 and Switch share; the feed-forward parts are left out."""
    encoder, decoder = spec.encoder, spec.decoder
    for side in (encoder, decoder):
        expect(side.block, PreNorm)
        if (side.norm, side.position, side.attention.n_heads) != (encoder.norm, encoder.position, encoder.attention.n_heads):
            raise Inexpressible("the parts of its encoder and of its decoder differ")
    attention = expect(encoder.attention, Gqa, scale=1.0)
    defaults(attention, "head_dim", "scale", "dropout")
    expect(decoder.attention, Gqa, scale=1.0, head_dim=attention.head_dim)
    defaults(decoder.attention, "head_dim", "scale", "dropout")
    if decoder.cross is None:
        raise Inexpressible("its decoder has no cross-attention")
    expect(decoder.cross, Cross, scale=1.0, head_dim=attention.head_dim, n_heads=attention.n_heads)
    defaults(decoder.cross, "head_dim", "scale", "dropout")
    norm, position = expect(encoder.norm, RmsNorm), expect(encoder.position, T5Bias)
    defaults(norm, "eps")
    head = expect(spec.head, Lm, dim_power=(0.0, -0.5))
    defaults(head, "dim_power")
    defaults(expect(spec.embedding, Token))
    defaults(spec, "embedding_std", "init_std")
    return {
        "model_type": kind,
        "architectures": [architecture],
        "is_encoder_decoder": True,
        "vocab_size": spec.vocab_size,
        "d_model": spec.dim,
        "d_kv": attention.head_width(spec.dim),
        "d_ff": encoder.ffn.hidden,
        "num_layers": encoder.n_layers,
        "num_decoder_layers": decoder.n_layers,
        "num_heads": attention.n_heads,
        "n_positions": spec.max_positions,
        "relative_attention_num_buckets": position.n_buckets,
        "relative_attention_max_distance": position.max_distance,
        "layer_norm_epsilon": norm.eps,
        "initializer_factor": 1.0 if spec.embedding_std is None else spec.embedding_std,
        "tie_word_embeddings": head.tied,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def outer_entries(spec: EncoderDecoder) -> Iterator[Entry]:
    """Embedding, score biases, last norms and head."""
    yield same("embedding.weight", "shared.weight")
    for side in ("encoder", "decoder"):
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield same(f"{side}.position.weight", bias)
        yield same(f"{side}.norm.weight", f"{side}.final_layer_norm.weight")
    if not expect(spec.head, Lm).tied:
        yield same("head.weight", "lm_head.weight")


def blocks(spec: EncoderDecoder) -> Iterator[tuple[str, str, int, FfnSpec]]:
    """Of every block of both sides: our name, theirs, the number of its last sub-layer, its feed-forward part."""
    for side, tower, last in (("encoder", spec.encoder, 1), ("decoder", spec.decoder, 2)):
        for layer, kind in enumerate(tower.kinds()):
            yield f"{side}.blocks.{layer}", f"{side}.block.{layer}.layer", last, kind.ffn


def attention_entries(ours: str, theirs: str, last: int) -> Iterator[Entry]:
    """Attention and norms of a block; the decoder's has cross-attention between the two other sub-layers."""
    parts = {"attention": "0.SelfAttention"} | ({"cross": "1.EncDecAttention"} if last == 2 else {})
    for number, (name, other) in enumerate(parts.items()):
        yield same(f"{ours}.{name}_norm.weight", f"{theirs}.{number}.layer_norm.weight")
        for matrix in "qkvo":
            yield same(f"{ours}.{name}.{matrix}.weight", f"{theirs}.{other}.{matrix}.weight")
    yield same(f"{ours}.ffn_norm.weight", f"{theirs}.{last}.layer_norm.weight")
