"""Equal logits, losses and gradients with the encoder-decoders of `transformers`: float32, 1e-5 of the largest value."""

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


MODELS = {
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
    gradients = pair.to_ours({name: parameter.grad for name, parameter in pair.theirs.named_parameters()})
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
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

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
    from transformers import AutoModelForSeq2SeqLM

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
