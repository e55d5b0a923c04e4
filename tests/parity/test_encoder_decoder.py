"""Equal logits, losses and gradients with the encoder-decoders of `transformers`: float32, 1e-5 of the largest value."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from llmfactory.checkpoint.names.families import family_of
from llmfactory.checkpoint.names.family import Inexpressible
from llmfactory.checkpoint.names.translate import to_theirs
from llmfactory.config.compose import compose_job
from llmfactory.core.context import Record
from llmfactory.core.errors import UserError
from llmfactory.inference.generate import generate
from llmfactory.inference.sampler import GREEDY
from llmfactory.model.count import parameters


def bart(**changes):
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        **{
            "vocab_size": 103,
            "max_position_embeddings": 40,
            "d_model": 48,
            "encoder_layers": 2,
            "encoder_ffn_dim": 80,
            "encoder_attention_heads": 4,
            "decoder_layers": 3,
            "decoder_ffn_dim": 72,
            "decoder_attention_heads": 6,
            **changes,
        }
    )
    return BartForConditionalGeneration(config)


def t5(tied=True, **changes):
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 103, "d_model": 48, "d_kv": 12, "d_ff": 80, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}
    sizes |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "dropout_rate": 0.0}
    model = T5ForConditionalGeneration(T5Config(**{**sizes, **changes}, tie_word_embeddings=tied))
    if not tied:  # transformers ties them at construction, whatever the config says, and unties them when it loads
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + torch.randn(103, 48))
        model.config.tie_word_embeddings = False
    return model


def switch(**changes):
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    sizes = {"vocab_size": 103, "d_model": 48, "d_kv": 12, "d_ff": 32, "num_layers": 4, "num_decoder_layers": 3, "num_heads": 4}
    sizes |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "num_experts": 4}
    sizes |= {"num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 1}
    return SwitchTransformersForConditionalGeneration(SwitchTransformersConfig(**{**sizes, **changes}))


MODELS = {
    "switch": switch,
    "switch_everywhere": lambda: switch(num_sparse_encoder_layers=4, num_sparse_decoder_layers=3, dense_act_fn="gelu"),
    "t5": t5,
    "t5_wide_heads": lambda: t5(d_kv=20, layer_norm_epsilon=1e-3),
    "t5_v1_1": lambda: t5(tied=False, feed_forward_proj="gated-gelu"),
    "bart": bart,
    "bart_scaled": lambda: bart(scale_embedding=True, activation_function="relu"),
}


@pytest.fixture(params=MODELS)
def pair(request, make_pair):
    torch.manual_seed(0)
    return make_pair(MODELS[request.param]())


def close(got, want, tolerance=1e-5):
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * float(want.detach().abs().max()))


def ids(*shape, seed=1):
    return torch.randint(3, 103, shape, generator=torch.Generator().manual_seed(seed))


def logits(model, tokens, source, real=None, source_real=None):
    """Of rows with padding (0 in `real`), whose positions are the columns, as these families count them."""
    batch = {
        "tokens": tokens,
        "positions": torch.arange(tokens.shape[1]).expand(tokens.shape),
        "segments": torch.ones_like(tokens) if real is None else real,
        "source": source,
        "source_positions": torch.arange(source.shape[1]).expand(source.shape),
        "source_segments": torch.ones_like(source) if source_real is None else source_real,
    }
    return model.head(model(tokens, model.context(batch)))


def test_logits(pair):
    tokens, source = ids(3, 17), ids(3, 40)
    close(logits(pair.ours, tokens, source), pair.theirs(source, decoder_input_ids=tokens).logits)


def test_loss_and_gradients(pair):
    tokens, source, labels = ids(3, 9), ids(3, 14), ids(3, 9, seed=2)
    labels[0, :4] = -100
    want = pair.theirs(source, decoder_input_ids=tokens, labels=labels).loss
    want.backward()
    got = F.cross_entropy(logits(pair.ours, tokens, source).flatten(0, 1), labels.flatten())
    got.backward()
    close(got, want)
    # An expert that nobody visits has no gradient in theirs.
    theirs = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in pair.theirs.named_parameters()}
    gradients = pair.to_ours(theirs)
    # A bias of the keys moves all scores of a query alike: its gradient is zero but for rounding.
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, parameter in pair.ours.named_parameters():
        atol = max(1e-5 * float(gradients[name].abs().max()), 1e-7 * largest)
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(pair, side):
    tokens, source = ids(3, 9), ids(3, 14)
    real, source_real = torch.ones_like(tokens), torch.ones_like(source)
    for row, (length, read) in enumerate(((9, 8), (5, 14), (2, 3))):
        real[row, length:], source_real[row, read:] = 0, 0
    if side == "left":
        real, source_real = real.flip(1), source_real.flip(1)
    want = pair.theirs(source, attention_mask=source_real, decoder_input_ids=tokens, decoder_attention_mask=real).logits
    got = logits(pair.ours, tokens, source, real, source_real)
    close(got[real == 1], want[real == 1])


def test_cached_decoding(pair):
    """The same greedy answers to texts of different lengths, both with a cache."""
    prompts = [ids(7).tolist(), ids(3).tolist(), ids(11).tolist()]
    source = torch.tensor([prompt + [1] * (11 - len(prompt)) for prompt in prompts])
    real = torch.tensor([[1] * len(prompt) + [0] * (11 - len(prompt)) for prompt in prompts])
    config = pair.theirs.generation_config
    config.forced_eos_token_id = config.forced_bos_token_id = config.eos_token_id = None
    want = pair.theirs.generate(
        source, attention_mask=real, decoder_start_token_id=2, max_new_tokens=12, do_sample=False, num_beams=1, use_cache=True
    )[:, 1:]
    got = generate(pair.ours, prompts, max_tokens=12, sampling=GREEDY, start_id=2)
    assert got == want.tolist()


@pytest.mark.parametrize("name", MODELS)
def test_back_into_transformers(name, make_pair, tmp_path):
    """Our config and tensors, saved as a folder, load there with equal logits."""
    from safetensors.torch import save_file

    pair = make_pair(MODELS[name]())
    folder_config = AutoConfig.for_model(**pair.family.config(pair.ours.spec))
    folder_config.save_pretrained(tmp_path)
    tensors = dict(to_theirs(pair.family.entries(pair.ours.spec), dict(pair.ours.named_parameters())))
    save_file(
        {name: tensor.detach().clone() for name, tensor in tensors.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    tokens, source = ids(2, 5), ids(2, 8)
    close(theirs(source, decoder_input_ids=tokens).logits, logits(pair.ours, tokens, source))


def published():
    """Configs of the published checkpoints, as on their hub pages, by preset."""
    from transformers import BartConfig, T5Config

    base = {
        f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in (("layers", 6), ("attention_heads", 12))
    }
    yield "bart_base", BartConfig(d_model=768, encoder_ffn_dim=3072, decoder_ffn_dim=3072, **base)
    yield "bart_large", BartConfig()
    first = {
        "small": (512, 64, 2048, 6, 8),
        "base": (768, 64, 3072, 12, 12),
        "large": (1024, 64, 4096, 24, 16),
        "3b": (1024, 128, 16384, 24, 32),
        "11b": (1024, 128, 65536, 24, 128),
    }
    second = {
        "small": (512, 64, 1024, 8, 6),
        "base": (768, 64, 2048, 12, 12),
        "large": (1024, 64, 2816, 24, 16),
        "xl": (2048, 64, 5120, 24, 32),
        "xxl": (4096, 64, 10240, 24, 64),
    }
    names = ("d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    for name, sizes in first.items():
        yield f"t5_{name}", T5Config(**dict(zip(names, sizes, strict=True)))
    for name, sizes in second.items():
        sizes = dict(zip(names, sizes, strict=True))
        yield f"t5_v1_1_{name}", T5Config(**sizes, feed_forward_proj="gated-gelu", tie_word_embeddings=False)


@pytest.mark.parametrize(("preset", "config"), list(published()), ids=lambda value: value if isinstance(value, str) else "")
def test_presets_are_the_published_models(preset, config):
    """Their config gives our preset, and as many parameters as theirs has."""
    with torch.device("meta"):
        want = sum(p.numel() for p in AutoModelForSeq2SeqLM.from_config(config).parameters())
    config = config.to_dict()
    if config.get("scale_decoder_outputs") is False:  # version 1.1: see names/t5.py
        config["tie_word_embeddings"] = False
        want += config["vocab_size"] * config["d_model"]
    spec = compose_job([f"model={preset}", "stage=describe"]).job.model
    assert family_of(config).spec(config) == spec
    with torch.device("meta"):
        assert parameters(spec.build()) == want


@pytest.mark.parametrize(
    ("key", "value"),
    [("is_decoder", True), ("feed_forward_proj", "swiglu"), ("feed_forward_proj", "gated-mish")],
)
def test_t5_configs_that_we_have_no_part_for(key, value):
    config = t5().config.to_dict() | {key: value}
    with pytest.raises(UserError, match="has no counterpart"):
        family_of(config).spec(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("encoder_layerdrop", 0.1),
        ("decoder_layerdrop", 0.1),
        ("normalize_before", True),
        ("add_final_layer_norm", True),
        ("normalize_embedding", False),
        ("static_position_embeddings", True),
        ("extra_pos_embeddings", 0),
        ("add_bias_logits", True),
        ("tie_word_embeddings", False),
        ("is_decoder", True),
    ],
)
def test_bart_configs_that_we_have_no_part_for(key, value):
    config = bart().config.to_dict() | {key: value}
    with pytest.raises(UserError, match=f"{key}=.*has no counterpart"):
        family_of(config).spec(config)


def changed(spec, path, **changes):
    """The spec with a part of one side changed."""
    side, _, part = path.partition(".")
    if not part:
        inner = dataclasses.replace(getattr(spec, side), **changes)
        return dataclasses.replace(spec, **{side: inner})
    tower = getattr(spec, side)
    return dataclasses.replace(
        spec, **{side: dataclasses.replace(tower, **{part: dataclasses.replace(getattr(tower, part), **changes)})}
    )


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("encoder.norm", {"eps": 0.5}),
        ("decoder.norm", {"eps": 0.5}),
        ("decoder.position", {"max_distance": 500}),
        ("encoder.attention", {"scale": None}),
        ("encoder.attention", {"bias": True}),
        ("decoder.attention", {"window": 5}),
        ("decoder.attention", {"n_heads": 2}),
        ("decoder.cross", {"n_heads": 2}),
        ("decoder.cross", {"bias": True}),
        ("encoder.ffn", {"hidden": 12}),
        ("decoder.ffn", {"bias": True}),
        ("head", {"bias": True}),
        ("head", {"softcap": 3.0}),
        ("head", {"dim_power": -1.0}),
        ("embedding", {"dim_power": 0.5}),
    ],
)
def test_what_t5_cannot_say_is_not_exported(path, changes):
    spec = family_of({"model_type": "t5"}).spec(t5().config.to_dict())
    with pytest.raises(Inexpressible):
        family_of({"model_type": "t5"}).config(changed(spec, path, **changes))


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("encoder.norm", {"eps": 0.5}),
        ("decoder.position", {"offset": 0}),
        ("encoder.attention", {"qkv_bias": False}),
        ("decoder.attention", {"window": 5}),
        ("decoder.cross", {"n_heads": 2}),
        ("decoder.cross", {"scale": 1.0}),
        ("decoder.ffn", {"bias": False}),
        ("head", {"scale": 2.0}),
        ("head", {"tied": False}),
        ("embedding", {"scale": 3.0}),
    ],
)
def test_what_bart_cannot_say_is_not_exported(path, changes):
    family = family_of({"model_type": "bart"})
    with pytest.raises(Inexpressible):
        family.config(changed(family.spec(bart().config.to_dict()), path, **changes))


@pytest.mark.parametrize("capacity", [1, 2])
def test_tokens_over_the_capacity_of_an_expert(capacity, make_pair):
    """They are the last of each row that chose it, as in theirs; padding behind a text changes nothing."""
    pair = make_pair(switch(expert_capacity=capacity))
    tokens, source = ids(3, 9), ids(3, 14)
    want = pair.theirs(source, decoder_input_ids=tokens).logits
    close(logits(pair.ours, tokens, source), want)
    roomy = make_pair(switch(expert_capacity=64))
    assert not torch.allclose(logits(roomy.ours, tokens, source), want, atol=1e-3)
    real, source_real = torch.ones_like(tokens), torch.ones_like(source)
    real[1, 4:], source_real[2, 5:] = 0, 0
    want = pair.theirs(source, attention_mask=source_real, decoder_input_ids=tokens, decoder_attention_mask=real).logits
    close(logits(pair.ours, tokens, source, real, source_real)[real == 1], want[real == 1])


def test_losses_of_the_routers(make_pair):
    """The z-loss is theirs; the balance is, where a side has one layer with experts."""
    pair = make_pair(switch(num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, num_layers=2, num_decoder_layers=2))
    tokens, source, labels = ids(3, 9), ids(3, 14), ids(3, 9, seed=2)
    theirs = pair.theirs(source, decoder_input_ids=tokens, labels=labels, output_router_logits=True)
    model, record = pair.ours, Record()
    batch = {"tokens": tokens, "segments": torch.ones_like(tokens), "source": source, "source_segments": torch.ones_like(source)}
    for name, field in (("positions", tokens), ("source_positions", source)):
        batch[name] = torch.arange(field.shape[1]).expand(field.shape)
    model(tokens, model.context(batch).with_(record=record))
    counts = model.term_tokens(batch)
    got = {name: total.item() / counts[name] for name, total in record.sums.items()}
    want = {
        "encoder_balance": 0.001 * theirs.encoder_aux_loss,
        "decoder_balance": 0.001 * theirs.decoder_aux_loss,
        "encoder_router_z": 0.001 * theirs.encoder_z_loss,
        "decoder_router_z": 0.001 * theirs.decoder_z_loss,
    }
    assert got == pytest.approx({name: value.item() for name, value in want.items()}, rel=1e-5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("router_bias", True),
        ("router_dtype", "bfloat16"),
        ("router_ignore_padding_tokens", True),
        ("num_sparse_encoder_layers", 0),
        ("num_sparse_decoder_layers", 0),
        ("add_cross_attention", True),
    ],
)
def test_switch_configs_that_we_have_no_part_for(key, value):
    config = switch().config.to_dict() | {key: value}
    with pytest.raises(UserError, match="has no counterpart"):
        family_of(config).spec(config)


def published_switch():
    """Configs of the published checkpoints, as on their hub pages, by preset."""
    from transformers import SwitchTransformersConfig

    base = {"d_model": 768, "d_ff": 3072, "num_sparse_encoder_layers": 6, "num_sparse_decoder_layers": 6}
    for n_experts in (8, 16, 32, 64, 128, 256):
        yield f"switch_base_{n_experts}", SwitchTransformersConfig(**base, num_experts=n_experts)
    large = {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_decoder_layers": 24, "num_heads": 16}
    large |= {"num_sparse_encoder_layers": 12, "num_sparse_decoder_layers": 12}
    yield "switch_large_128", SwitchTransformersConfig(**large, num_experts=128)
    every = {"d_model": 2080, "d_ff": 6144, "num_layers": 15, "num_decoder_layers": 15, "num_heads": 32}
    every |= {"num_sparse_encoder_layers": 15, "num_sparse_decoder_layers": 15}
    yield "switch_c_2048", SwitchTransformersConfig(**every, num_experts=2048)


def losses_as_in_the_paper(side):
    """The side with the weights of routers' losses of Fedus et al., section 2.2, not those of the library's configs."""
    if not side.others:
        return dataclasses.replace(side, ffn=dataclasses.replace(side.ffn, balance=0.01, z=0.0))
    experts = side.others["moe"]
    others = {"moe": dataclasses.replace(experts, ffn=dataclasses.replace(experts.ffn, balance=0.01, z=0.0))}
    return dataclasses.replace(side, others=others)


@pytest.mark.parametrize(
    ("preset", "config"), list(published_switch()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_switch_presets_are_the_published_models(preset, config):
    spec = compose_job([f"model={preset}", "stage=describe"]).job.model
    theirs = family_of(config.to_dict()).spec(config.to_dict())
    sides = {name: losses_as_in_the_paper(getattr(theirs, name)) for name in ("encoder", "decoder")}
    assert dataclasses.replace(theirs, **sides) == spec
    with torch.device("meta"):
        model = spec.build()
    # One expert is one of many alike, so that the library need not make thousands of modules.
    few = type(config)(**{**config.to_dict(), "num_experts": 2})
    with torch.device("meta"):
        library = AutoModelForSeq2SeqLM.from_config(few)
    expert = 2 * config.d_model * config.d_ff + config.d_model
    sparse = sum(
        block.ffn.__class__.__name__ == "SwitchLayer" for side in (model.encoder, model.decoder) for block in side.blocks
    )
    want = sum(p.numel() for p in library.parameters()) + sparse * (config.num_experts - 2) * expert
    assert parameters(model) == want


@pytest.mark.parametrize(("preset", "billions"), [("switch_xxl_128", 395), ("switch_c_2048", 1571), ("switch_large_128", 26.3)])
def test_switch_presets_have_the_papers_size(preset, billions):
    """Table 9; the large one there has gated experts of another width, and so 26.3 in place of our 26.4 (26 B)."""
    with torch.device("meta"):
        size = parameters(compose_job([f"model={preset}", "stage=describe"]).job.model.build())
    assert size == pytest.approx(billions * 1e9, rel=0.01)
