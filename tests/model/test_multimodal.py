"""Vision encoder, connector and decoder together; their numbers beside the reference library's are in parity/test_llava.py."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from llmfactory.config.compose import compose_job
from llmfactory.config.toy import small_model
from llmfactory.core.context import CausalMask, Context, FullMask
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.model.attention.spec import Cross, Gqa
from llmfactory.model.block.spec import PostNorm, PreNorm
from llmfactory.model.connector.spec import Projector, QFormer
from llmfactory.model.count import parameters
from llmfactory.model.declarations import declarations
from llmfactory.model.embedding.spec import Patch
from llmfactory.model.ffn.spec import Activation, Mlp
from llmfactory.model.head.spec import Lm
from llmfactory.model.initialize import initialize
from llmfactory.model.norm.spec import LayerNorm
from llmfactory.model.position.spec import Learned, None_
from llmfactory.model.spec import DecoderOnly, Multimodal, VisionSpec
from llmfactory.model.steps import Pass

IMAGE = 96


def vision(**changes):
    fields = {
        "dim": 12,
        "n_layers": 2,
        "norm": LayerNorm(),
        "position": Learned(),
        "attention": Gqa(n_heads=3, bias=True),
        "ffn": Mlp(hidden=16, activation=Activation.gelu),
        "block": PreNorm(),
        "embedding": Patch(image_size=8, patch_size=4),
    }
    return VisionSpec(**{**fields, **changes})


@pytest.fixture
def spec(llama):
    def make(**changes):
        language = {field.name: getattr(llama(), field.name) for field in dataclasses.fields(DecoderOnly)}
        own = {"vision": vision(), "connector": Projector(n_layers=2), "image_token": IMAGE}
        return Multimodal(**{**language, **own, **changes})

    return make


def batch_of(vectors, n_images=2):
    """Two rows with pictures at other places."""
    numbers = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 90, (2, 6 + vectors * n_images), generator=numbers)
    for row in range(2):
        for picture in range(n_images):
            start = 1 + row + picture * (vectors + 1)
            tokens[row, start : start + vectors] = IMAGE
    images = torch.randn(2, n_images, 3, 8, 8, generator=numbers, dtype=torch.float64)
    positions = torch.arange(tokens.shape[1]).repeat(2, 1)
    return {"tokens": tokens, "positions": positions, "segments": torch.ones_like(tokens), "images": images}


def features(vision, images):
    """[N, P, D] of pictures [N, C, Y, X]."""
    going = Pass(torch.zeros(1, 1), Context(torch.zeros(1, 1), CausalMask(1), images=images[None]))
    for step in vision.steps():
        step.run(going)
    return going.carried["features"]


def run(model, batch):
    return model(batch["tokens"], model.context(batch))


def test_vectors_of_pictures_take_the_places_of_placeholders_in_order(spec, build):
    model = build(spec())
    batch = batch_of(5)
    x = model.decoder.embedding(batch["tokens"], None).clone()
    for row in range(2):
        vectors = torch.cat([model.connector(features(model.vision, picture[None]))[0] for picture in batch["images"][row]])
        x[row, batch["tokens"][row] == IMAGE] = vectors
    context = Context(batch["positions"], CausalMask(x.shape[1]))
    going = Pass(batch["tokens"], context, {"hidden": model.decoder.enter(x, context, model.decoder.maps)})
    for step in model.decoder.steps()[1:]:
        step.run(going)
    want = going.carried["hidden"]
    torch.testing.assert_close(run(model, batch), want, rtol=1e-10, atol=1e-10)


def test_the_vision_encoder_is_its_parts_in_a_row(build, spec):
    model = build(spec(vision=vision(embedding_norm=True, layers_used=1, keep_class=False))).vision
    images = batch_of(4)["images"][0]
    x = model.embedding(images) + model.tower.position.weight
    x = model.embedding_norm(x)
    block = model.tower.blocks[0]
    context = Context(torch.arange(5)[None], FullMask())
    x = x + block.attention(block.attention_norm(x), context)
    x = x + block.ffn(block.ffn_norm(x), context)
    torch.testing.assert_close(features(model, images), x[:, 1:], rtol=1e-10, atol=1e-10)


def test_all_blocks_and_the_norm_unless_told_otherwise(build, spec):
    model = build(spec(vision=vision(n_layers=3))).vision
    images = batch_of(4)["images"][0]
    whole = build(spec(vision=vision(n_layers=3, layers_used=3))).vision
    torch.testing.assert_close(features(model, images), whole.tower.norm(features(whole, images)), rtol=1e-10, atol=1e-10)
    assert features(model, images).shape == (2, 5, 12)


@pytest.mark.parametrize("change", [-1, 1])
def test_another_number_of_placeholders_is_named(spec, build, change):
    model = build(spec())
    batch = batch_of(5)
    if change > 0:
        batch["tokens"][1, 0] = IMAGE
    else:
        batch["tokens"][1, 2] = 3
    with pytest.raises(
        UserError, match=rf"2 pictures of 5 vectors need 10 placeholders \(token 96\), but row 1 has {10 + change}"
    ):
        run(model, batch)


def test_the_placeholder_is_the_token_that_the_spec_says(spec, build):
    batch = batch_of(5)
    with pytest.raises(UserError, match=r"placeholders \(token 95\), but row 0 has 0"):
        run(build(spec(image_token=95)), batch)
    want = run(build(spec()), batch)
    batch["tokens"][batch["tokens"] == IMAGE] = 95
    torch.testing.assert_close(run(build(spec(image_token=95)), batch), want, rtol=1e-12, atol=1e-12)


def test_text_alone_is_text(spec, build):
    """The placeholder's id is a token like any other, and the vision encoder is not run."""
    model = build(spec())
    batch = batch_of(5)
    del batch["images"]
    model.vision.embedding.register_forward_hook(lambda *_: pytest.fail("there are no pictures"))
    want = model.decoder(batch["tokens"], Context(batch["positions"], CausalMask(batch["tokens"].shape[1])))
    torch.testing.assert_close(run(model, batch), want, rtol=1e-10, atol=1e-10)


def test_gradients_reach_the_pictures_parts(spec, build):
    model = build(spec(vision=vision(layers_used=1)))
    run(model, batch_of(5)).sum().backward()
    for name in ("vision.embedding.squares.weight", "vision.tower.position.weight", "connector.maps.0.weight"):
        assert model.get_parameter(name).grad.abs().sum() > 0
    assert model.get_parameter("vision.tower.blocks.1.ffn.up.weight").grad is None  # not used


CHANGES = {
    "vision": vision(n_layers=3),
    "connector": Projector(n_layers=1),
    "vocab_size": 98,
    "dim": 48,
    "n_layers": 2,
    "norm": LayerNorm(),
    "position": None_(),
    "attention": Gqa(n_heads=4),
    "init_std": 0.03,
    "depth_scaled_init": False,
    "embedding_norm": True,
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_model(spec, name):
    def numbers(made):
        model = made.build().eval()
        initialize(model, 0)
        batch = batch_of(5)
        batch["images"] = batch["images"].float()
        weights = [(name, tuple(w.shape), w.double().abs().sum().item()) for name, w in model.named_parameters()]
        return [weights, run(model, batch).double().abs().sum().item()]

    assert numbers(spec()) == numbers(spec())
    assert numbers(spec(**{name: CHANGES[name]})) != numbers(spec())


def test_parameters_are_declared_and_chained(spec):
    model = spec(vision=vision(embedding_norm=True)).build()
    assert set(declarations(model)) == {name for name, _ in model.named_parameters()}
    assert sum(sum(p.numel() for p in module.parameters()) for _, module in model.chain()) == parameters(model)
    assert all(model.get_submodule(name) is module for name, module in model.chain())
    assert model.head is model.decoder.head
    assert model.train_flops_per_token(16) == model.decoder.train_flops_per_token(16)


def test_checks(spec):
    with pytest.raises(ConfigError) as error:
        vision(layers_used=3, cross=Cross(n_heads=3))
    assert {problem.path for problem in error.value.problems} == {"layers_used", "cross"}
    with pytest.raises(ConfigError, match="no class vector to drop"):
        vision(keep_class=False, embedding=Patch(image_size=8, patch_size=4, class_token=False))
    with pytest.raises(ConfigError) as error:
        spec(image_token=97)
    assert error.value.problems[0].repair == "image_token=96"
    with pytest.raises(ConfigError, match="does not divide"):
        vision(dim=13)


def test_vectors_of_a_picture(spec):
    assert spec().vectors_per_image == 5
    assert spec(vision=vision(keep_class=False)).vectors_per_image == 4
    queries = QFormer(n_queries=3, dim=8, n_layers=2, n_heads=2, hidden=8, norm=LayerNorm())
    assert spec(connector=queries).vectors_per_image == 3


@pytest.mark.parametrize("connector", ["projector", "q_former"])
def test_laptop_size_keeps_what_it_is(connector):
    line = ["model=llava_1_5_7b", f"model/connector={connector}", "stage=describe"]
    whole, small = (compose_job([*line, *more]).job.model for more in ([], ["toy=true"]))
    assert small_model(small) == small
    assert small.vision.n_layers - small.vision.layers_used == whole.vision.n_layers - whole.vision.layers_used
    assert (small.vision.keep_class, small.vision.embedding_norm) == (False, True)
    assert small.image_token < small.vocab_size
    model = small.build()
    initialize(model, 0)
    assert parameters(model) < 300_000
    size, count = small.vision.embedding.image_size, small.vectors_per_image
    tokens = torch.full((1, count + 1), 5)
    tokens[0, :count] = small.image_token
    batch = {"tokens": tokens, "positions": torch.arange(count + 1)[None], "segments": torch.ones_like(tokens)}
    assert run(model, {**batch, "images": torch.randn(1, 1, 3, size, size)}).isfinite().all()


def test_the_decoder_is_what_its_fields_say(spec):
    """All of them but the three of pictures go to the decoder as they are."""
    fields = {field.name for field in dataclasses.fields(DecoderOnly)}
    assert {field.name for field in dataclasses.fields(Multimodal)} - fields == {"vision", "connector", "image_token"}
    changed = spec(
        max_positions=20, dropout=0.5, block=PostNorm(), head=Lm(tied=True), ffn=Mlp(hidden=8, activation=Activation.relu)
    )
    assert changed.build().decoder.spec == changed.language
    assert changed.language == DecoderOnly(**{name: getattr(changed, name) for name in fields})
    with pytest.raises(ConfigError, match="no encoder to attend to"):
        spec(cross=Cross(n_heads=6))
