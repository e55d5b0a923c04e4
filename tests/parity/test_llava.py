"""Equal logits, losses and gradients with `transformers`: float32, 1e-5 of the largest value."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from llmfactory.checkpoint.names.families import family_of
from llmfactory.checkpoint.names.family import Inexpressible
from llmfactory.checkpoint.names.translate import to_theirs
from llmfactory.config.compose import compose_job
from llmfactory.core.errors import UserError
from llmfactory.inference.cache import KvCache
from llmfactory.inference.decoding import columns
from llmfactory.model.connector.spec import Projector
from llmfactory.model.count import parameters

IMAGE = 101
"""The placeholder's id."""


def llava(text="llama", vision=None, **changes):
    from transformers import CLIPVisionConfig, GPT2Config, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 48}
    seen = CLIPVisionConfig(
        **{**sizes, "hidden_size": 20, "image_size": 12, "patch_size": 4, "attention_dropout": 0.0, **(vision or {})}
    )
    if text == "llama":
        words = LlamaConfig(**sizes, vocab_size=103, max_position_embeddings=64, num_key_value_heads=2)
    else:
        words = GPT2Config(vocab_size=103, n_embd=32, n_layer=2, n_head=4, n_positions=64, tie_word_embeddings=False)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=seen, text_config=words, **{"image_token_index": IMAGE, **changes})
    )


MODELS = {
    "llava": llava,
    "whole_layers": lambda: llava(
        vision_feature_layer=-1, vision_feature_select_strategy="full", multimodal_projector_bias=False
    ),
    "gpt2": lambda: llava(text="gpt2", vision_feature_layer=2, projector_hidden_act="relu", vision={"hidden_act": "gelu"}),
}


@pytest.fixture(params=MODELS)
def pair(request, make_pair):
    torch.manual_seed(0)
    return make_pair(MODELS[request.param]())


def close(got, want, tolerance=1e-5):
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * float(want.detach().abs().max()))


def batch_of(vectors, n_images=2, rows=2):
    """Rows of text with pictures in them, at other places in each row."""
    numbers = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 100, (rows, 8 + vectors * n_images), generator=numbers)
    for row in range(rows):
        for picture in range(n_images):
            start = 1 + row + picture * (vectors + 1)
            tokens[row, start : start + vectors] = IMAGE
    images = torch.randn(rows, n_images, 3, 12, 12, generator=numbers)
    positions = torch.arange(tokens.shape[1]).repeat(rows, 1)
    return {"tokens": tokens, "positions": positions, "segments": torch.ones_like(tokens), "images": images}


def logits(model, batch):
    return model.head(model(batch["tokens"], model.context(batch)))


def test_logits(pair):
    batch = batch_of(pair.ours.spec.vectors_per_image)
    want = pair.theirs(batch["tokens"], pixel_values=batch["images"].flatten(0, 1)).logits
    close(logits(pair.ours, batch), want)
    other = {**batch, "images": batch["images"].flip(1)}
    assert not torch.allclose(logits(pair.ours, other), want, atol=1e-3)


def test_text_alone(pair):
    batch = batch_of(4, n_images=0)
    del batch["images"]
    close(logits(pair.ours, batch), pair.theirs(batch["tokens"]).logits)


def test_padding(pair):
    batch = batch_of(pair.ours.spec.vectors_per_image)
    real = torch.ones_like(batch["tokens"])
    real[1, -3:] = 0
    want = pair.theirs(batch["tokens"], pixel_values=batch["images"].flatten(0, 1), attention_mask=real).logits
    close(logits(pair.ours, {**batch, "segments": real})[real == 1], want[real == 1])


def test_loss_and_gradients(pair):
    batch = batch_of(pair.ours.spec.vectors_per_image)
    labels = torch.where(batch["tokens"] == IMAGE, -100, batch["tokens"])
    want = pair.theirs(batch["tokens"], pixel_values=batch["images"].flatten(0, 1), labels=labels).loss
    want.backward()
    got = F.cross_entropy(logits(pair.ours, batch)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    got.backward()
    close(got, want)
    theirs = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in pair.theirs.named_parameters()}
    gradients = pair.to_ours(theirs)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, parameter in pair.ours.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        atol = max(1e-5 * float(gradients[name].abs().max()), 1e-7 * largest)
        torch.testing.assert_close(gradient, gradients[name], rtol=0, atol=atol, msg=name)


def test_step_by_step_equals_the_whole(pair):
    """Pictures come with the first call only."""
    batch = batch_of(pair.ours.spec.vectors_per_image)
    want, length = logits(pair.ours, batch), batch["tokens"].shape[1]
    state, got, first = KvCache(length), [], length - 3
    for start, end in ((0, first), (first, first + 1), (first + 1, length)):
        context = columns([0, 0], start, end, torch.device("cpu")).with_(state=state, images=None if start else batch["images"])
        got.append(pair.ours.head(pair.ours(batch["tokens"][:, start:end], context)))
    close(torch.cat(got, 1), want)


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
    close(theirs(batch["tokens"], pixel_values=batch["images"].flatten(0, 1)).logits, logits(pair.ours, batch))


def published():
    """As in the config.json of llava-hf/llava-1.5-7b-hf, which leaves out what its format's defaults say."""
    return {
        "model_type": "llava",
        "image_token_index": 32000,
        "projector_hidden_act": "gelu",
        "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "vocab_size": 32064},
        "vision_config": {
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "model_type": "clip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
            "vocab_size": 32000,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


def test_the_preset_is_the_published_model():
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    spec = compose_job(["model=llava_1_5_7b", "stage=describe"]).job.model
    assert family_of(published()).spec(published()) == spec
    with torch.device("meta"):
        theirs = LlavaForConditionalGeneration(LlavaConfig(**{**published(), "model_type": "llava"}))
        assert parameters(spec.build()) == sum(p.numel() for p in theirs.parameters())


def test_names_of_other_files():
    family = family_of({"model_type": "llava"})
    today = {
        "vision_tower.vision_model.pre_layrnorm.bias": "vision_tower.pre_layrnorm.bias",
        "model.vision_tower.pre_layrnorm.bias": "vision_tower.pre_layrnorm.bias",
        "model.multi_modal_projector.linear_1.bias": "multi_modal_projector.linear_1.bias",
        "model.language_model.layers.0.mlp.up_proj.weight": "language_model.model.layers.0.mlp.up_proj.weight",
        "lm_head.weight": "language_model.lm_head.weight",
    }
    for name, want in today.items():
        assert family.today(name) == want
        assert family.today(want) == want


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_feature_layer": [-2, -5]}, "vision_feature_layer"),
        ({"vision_config": {**published()["vision_config"], "model_type": "siglip_vision_model"}}, "model_type"),
        ({"text_config": {"model_type": "xlnet", "d_model": 8, "n_head": 2, "n_layer": 1, "d_inner": 8}}, "is no decoder"),
        ({"projector_hidden_act": "mish"}, "mish"),
    ],
)
def test_configs_that_we_have_no_part_for(change, message):
    with pytest.raises(UserError, match=message):
        family_of(published()).spec({**published(), **change})


def test_what_llava_cannot_say_is_not_exported():
    family = family_of(published())
    spec = family.spec(llava().config.to_dict())
    family.config(spec)
    vision = spec.vision
    for changes in (
        {"connector": Projector(n_layers=1)},
        {"vision": dataclasses.replace(vision, layers_used=None)},
        {"vision": dataclasses.replace(vision, embedding_norm=False)},
        {"vision": dataclasses.replace(vision, embedding=dataclasses.replace(vision.embedding, bias=True))},
        {"vision": dataclasses.replace(vision, attention=dataclasses.replace(vision.attention, window=4))},
        {"embedding_norm": True, "head": dataclasses.replace(spec.head, scale=3.0)},
    ):
        with pytest.raises(Inexpressible):
            family.config(dataclasses.replace(spec, **changes))
    assert family_of({"model_type": "llama"}).config(spec.language)
    with pytest.raises(Inexpressible, match="skeleton"):
        family_of({"model_type": "llama"}).config(spec)
