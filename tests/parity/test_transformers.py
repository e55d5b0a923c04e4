"""Equal logits, losses and gradients with the decoders of `transformers`: float32, 1e-5 of the largest value."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llmfactory.core.context import CausalMask, Context, DocumentMask
from llmfactory.inference.beam import beam_search
from llmfactory.inference.generate import generate
from llmfactory.inference.sampler import GREEDY


def close(got, want, tolerance=1e-5):
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * float(want.detach().abs().max()))


def ids(*shape):
    return torch.randint(1, 103, shape, generator=torch.Generator().manual_seed(1))


def logits(model, tokens, positions=None, mask=None):
    count, length = tokens.shape
    positions = torch.arange(length).expand(count, length) if positions is None else positions
    return model.head(model(tokens, Context(positions, mask or CausalMask(length))))


def test_logits(pair):
    tokens = ids(3, 64)
    close(logits(pair.ours, tokens), pair.theirs(tokens).logits)


def test_loss_and_gradients(pair):
    tokens = ids(3, 20)
    want = pair.theirs(tokens, labels=tokens).loss
    want.backward()
    got = F.cross_entropy(logits(pair.ours, tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    got.backward()
    close(got, want)
    gradients = pair.to_ours({name: parameter.grad for name, parameter in pair.theirs.named_parameters()})
    # A bias of the keys moves all scores of a query alike: its gradient is zero but for rounding.
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, parameter in pair.ours.named_parameters():
        atol = max(1e-5 * float(gradients[name].abs().max()), 1e-7 * largest)
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=atol)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(pair, side):
    tokens = ids(3, 12)
    real = torch.ones_like(tokens)
    for row, length in enumerate((12, 5, 9)):
        real[row, : 12 - length] = 0
        if side == "right":
            real[row] = real[row].flip(0)
    positions = (real.cumsum(1) - 1).clamp_min(0)
    want = pair.theirs(tokens, attention_mask=real, position_ids=positions).logits
    got = logits(pair.ours, tokens, positions, DocumentMask(real))
    close(got[real == 1], want[real == 1])


def test_cached_decoding(pair):
    """The same greedy tokens from left-padded prompts, both with a cache."""
    prompts = [ids(7).tolist(), ids(3).tolist(), ids(11).tolist()]
    width = 11
    padded = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    real = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    want = pair.theirs.generate(
        padded, attention_mask=real, max_new_tokens=15, min_new_tokens=15, do_sample=False, use_cache=True
    )[:, width:]
    # min_new_tokens forbids token 0, the end: so does a bias here.
    pair.ours.head.register_forward_hook(lambda module, inputs, output: output.index_fill(-1, torch.tensor([0]), float("-inf")))
    got = generate(pair.ours, prompts, max_tokens=15, sampling=GREEDY)
    assert got == want.tolist()


@pytest.mark.parametrize("penalty", [1.0, 0.5])
def test_beam_search(pair, penalty):
    prompts = ids(3, 6)
    want = pair.theirs.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=8,
        num_beams=3,
        length_penalty=penalty,
        do_sample=False,
        eos_token_id=5,
        pad_token_id=0,
    )[:, 6:]
    got = beam_search(pair.ours, prompts.tolist(), beams=3, max_tokens=8, end_id=5, length_penalty=penalty)
    for ours, theirs in zip(got, want.tolist(), strict=True):
        assert ours == theirs[: theirs.index(5) if 5 in theirs else 8]
