"""Equal logits, losses and gradients with the encoder-decoders of `transformers`: float32, 1e-5 of the largest value."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from llmfactory.checkpoint.names.families import family_of
from llmfactory.checkpoint.names.family import Inexpressible
from llmfactory.checkpoint.names.translate import to_theirs
from llmfactory.core.errors import UserError
from llmfactory.inference.generate import generate
from llmfactory.inference.sampler import GREEDY


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


MODELS = {
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
    from transformers import AutoModelForSeq2SeqLM, AutoConfig

    pair = make_pair(MODELS[name]())
    folder_config = AutoConfig.for_model(**pair.family.config(pair.ours.spec))
    folder_config.save_pretrained(tmp_path)
    tensors = dict(to_theirs(pair.family.entries(pair.ours.spec), dict(pair.ours.named_parameters())))
    save_file({name: tensor.detach().clone() for name, tensor in tensors.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    tokens, source = ids(2, 5), ids(2, 8)
    close(theirs(source, decoder_input_ids=tokens).logits, logits(pair.ours, tokens, source))
