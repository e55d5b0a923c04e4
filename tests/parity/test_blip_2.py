"""Equal logits and gradients with `transformers`, which proves the Q-Former and the vision encoder of EVA: float32, 1e-5 of the
largest value (gradients, which are sums over all logits: 2e-5)."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from llmfactory.checkpoint.names.families import family_of
from llmfactory.checkpoint.names.family import Inexpressible
from llmfactory.checkpoint.names.translate import to_theirs
from llmfactory.config.compose import compose_job
from llmfactory.core.errors import UserError
from llmfactory.model.count import parameters
from llmfactory.model.initialize import initialize

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


def size(preset):
    with torch.device("meta"):
        model = compose_job([f"model={preset}", "stage=describe"]).job.model.build()
    return {name: parameters(getattr(model, name)) for name in ("vision", "connector", "decoder")}


@pytest.mark.parametrize("preset", ["minigpt4", "visualglm_6b"])
def test_presets_read_pictures_as_blip_2_does(preset):
    """EVA ViT-g/14 without its last block, and the Q-Former, exactly as the library's defaults have them; the map's width is 4096."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    text = {
        "model_type": "opt",
        "hidden_size": 4096,
        "num_hidden_layers": 1,
        "num_attention_heads": 32,
        "word_embed_proj_dim": 4096,
    }
    with torch.device("meta"):
        theirs = Blip2ForConditionalGeneration(Blip2Config(text_config=text, image_token_index=3))
    queries = theirs.query_tokens.numel() + sum(parameters(part) for part in (theirs.qformer, theirs.language_projection))
    assert {"vision": parameters(theirs.vision_model), "connector": queries}.items() <= size(preset).items()


@pytest.mark.parametrize(
    ("preset", "published"),
    [
        # Zhu et al. 2023 say what it is made of: Vicuna 7B (exact), ViT-g (986 M) and 108 M that Li et al. 2023, table 1, train.
        ("minigpt4", 6_738_415_616 + 986e6 + 108e6),
        # Its README: 7.8 B in all. Its 6.2 B of ChatGLM-6B count the vocabulary once, the 7.8 B twice.
        ("visualglm_6b", 7.8e9),
        # Its repository: CPM-Bee (as our preset of it), BEiT-3 large with both of its experts, a vocabulary of 64,010 and a head of
        # 8,192 that nothing uses, 64 queries, two maps. Squares and queries share one attention there, here the queries read the
        # squares by attention of their own; the README calls it a Q-Former.
        ("viscpm", 9_616_072_704 + 24 * 2 * 12_613_632 + 64_010 * 1024 + 1024 * 8192 + 64 * 1024 + 1024 * 4096 + 4096**2),
    ],
)
def test_published_sizes(preset, published):
    assert sum(size(preset).values()) == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("preset", ["minigpt4", "visualglm_6b", "viscpm"])
def test_presets_run_at_laptop_size(preset):
    spec = compose_job([f"model={preset}", "stage=describe", "toy=true"]).job.model
    model = spec.build()
    initialize(model, 0)
    side, count = spec.vision.embedding.image_size, spec.vectors_per_image
    batch = batch_of(count)
    batch["tokens"][:, :count] = spec.image_token
    batch["images"] = torch.randn(2, 1, 3, side, side)
    assert logits(model, batch).isfinite().all()
    assert parameters(model) < 500_000
