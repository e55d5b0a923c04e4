"""Equal logits and gradients with `transformers`, which proves the Q-Former and the vision encoder of EVA: float32, 1e-5 (gradients,
which are sums over all logits: 2e-5) of the
largest value."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from llmfactory.checkpoint.names.families import family_of
from llmfactory.checkpoint.names.family import Inexpressible
from llmfactory.checkpoint.names.translate import to_theirs
from llmfactory.core.errors import UserError

IMAGE = 101
"""The placeholder's id."""


def blip_2(queries=None, **changes):
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3}
    config = Blip2Config(
        vision_config={**sizes, "hidden_size": 20, "intermediate_size": 24, "image_size": 12, "patch_size": 4},
        qformer_config={**sizes, "num_attention_heads": 2, "intermediate_size": 28, **(queries or {})},
        text_config={
            "model_type": "opt",
            **sizes,
            "hidden_size": 40,
            "ffn_dim": 24,
            "vocab_size": 103,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 40,
        },
        **{"num_query_tokens": 3, "image_token_index": IMAGE, **changes},
    )
    return Blip2ForConditionalGeneration(config)


MODELS = {
    "blip_2": blip_2,
    "cross_everywhere": lambda: blip_2({"cross_attention_frequency": 1, "layer_norm_eps": 1e-3}, num_query_tokens=5),
}


@pytest.fixture(params=MODELS)
def pair(request, make_pair):
    torch.manual_seed(0)
    return make_pair(MODELS[request.param]())


def close(got, want, tolerance=1e-5):
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * float(want.detach().abs().max()))


def batch_of(queries):
    """A picture a row, in front of the text."""
    numbers = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 100, (2, queries + 7), generator=numbers)
    tokens[:, :queries] = IMAGE
    images = torch.randn(2, 1, 3, 12, 12, generator=numbers)
    positions = torch.arange(tokens.shape[1]).repeat(2, 1)
    return {"tokens": tokens, "positions": positions, "segments": torch.ones_like(tokens), "images": images}


def logits(model, batch):
    return model.head(model(batch["tokens"], model.context(batch)))


def test_logits(pair):
    batch = batch_of(pair.ours.spec.vectors_per_image)
    want = pair.theirs(pixel_values=batch["images"][:, 0], input_ids=batch["tokens"]).logits
    close(logits(pair.ours, batch), want)
    other = {**batch, "images": batch["images"].flip(0)}
    assert not torch.allclose(logits(pair.ours, other), want, atol=1e-3)


def test_gradients(pair):
    batch = batch_of(pair.ours.spec.vectors_per_image)
    weights = torch.randn(103, generator=torch.Generator().manual_seed(3))
    (pair.theirs(pixel_values=batch["images"][:, 0], input_ids=batch["tokens"]).logits * weights).sum().backward()
    (logits(pair.ours, batch) * weights).sum().backward()
    gradients = pair.to_ours({name: parameter.grad for name, parameter in pair.theirs.named_parameters()})
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, parameter in pair.ours.named_parameters():
        atol = max(2e-5 * float(gradients[name].abs().max()), 1e-6 * largest)
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=atol, msg=name)


def test_back_into_transformers(pair, tmp_path):
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForImageTextToText

    AutoConfig.for_model(**pair.family.config(pair.ours.spec)).save_pretrained(tmp_path)
    tensors = dict(to_theirs(pair.family.entries(pair.ours.spec), dict(pair.ours.named_parameters())))
    save_file(
        {name: tensor.detach().clone() for name, tensor in tensors.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    batch = batch_of(pair.ours.spec.vectors_per_image)
    close(theirs(pixel_values=batch["images"][:, 0], input_ids=batch["tokens"]).logits, logits(pair.ours, batch))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("vision_config", "qkv_bias", False),
        ("vision_config", "hidden_act", "mish"),
        ("qformer_config", "hidden_act", "relu"),
        ("qformer_config", "use_qformer_text_input", True),
    ],
)
def test_configs_that_we_have_no_part_for(part, key, value):
    config = blip_2().config.to_dict()
    config[part] = {**config[part], key: value}
    with pytest.raises(UserError, match="has no counterpart"):
        family_of(config).spec(config)


def test_what_blip_2_cannot_say_is_not_exported():
    family = family_of({"model_type": "blip-2"})
    spec = family.spec(blip_2().config.to_dict())
    vision, queries = spec.vision, spec.connector
    for changes in (
        {"vision": dataclasses.replace(vision, embedding_norm=True)},
        {"vision": dataclasses.replace(vision, layers_used=2)},
        {"vision": dataclasses.replace(vision, keep_class=False)},
        {"vision": dataclasses.replace(vision, embedding=dataclasses.replace(vision.embedding, bias=False))},
        {"vision": dataclasses.replace(vision, ffn=dataclasses.replace(vision.ffn, bias=False))},
        {"connector": dataclasses.replace(queries, norm=dataclasses.replace(queries.norm, bias=False))},
    ):
        with pytest.raises(Inexpressible):
            family.config(dataclasses.replace(spec, **changes))
