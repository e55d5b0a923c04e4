"""Decoding with a state equals a full forward, for every kind of model that writes text."""

from __future__ import annotations

import pytest
import torch

from llmfactory.config.compose import compose_job
from llmfactory.core.context import CausalMask, Context, FullMask, PrefixMask, Reading, Source
from llmfactory.inference.beam import beam_search
from llmfactory.inference.decoding import Decoding
from llmfactory.inference.generate import generate
from llmfactory.inference.sampler import GREEDY
from llmfactory.model.initialize import initialize

PRESETS = ["llama_tiny", "gpt2_tiny", "lstm_tiny", "gru_tiny", "mamba_tiny", "linear_transformer_tiny", "t5_small", "bart_base"]
PROMPTS = [[5, 6, 7], [1], [9, 8, 7, 6, 5, 4, 3, 2]]


def small(preset, *overrides):
    """The preset in small, in float64, with weights so large that its distributions are far from flat."""
    spec = compose_job([f"model={preset}", "toy=true", "stage=describe", *overrides]).job.model
    model = spec.build().double()
    initialize(model, 3, lambda parameter, full: parameter.copy_(full * 8 if full.dim() > 1 else full))
    return model.eval()


def full(model, prompt, new):
    """Logits behind a prompt and what was written so far, without a state."""
    if model.spec.graph == "encoder_decoder":
        count, tokens = len(prompt), [0, *new]
        inner = Context(torch.arange(count)[None], FullMask())
        source = Source(torch.tensor([prompt]), inner, FullMask())
    else:
        tokens, source = prompt + new, None
    length = len(tokens)
    context = Context(torch.arange(length)[None], CausalMask(length), source=source)
    return model.head(model(torch.tensor([tokens]), context)[:, -1])


@torch.no_grad()
@pytest.mark.parametrize("preset", PRESETS)
def test_each_step_equals_a_full_forward(preset):
    """Rows of different lengths, some of which are dropped or doubled on the way."""
    model = small(preset)
    rows = [(prompt, []) for prompt in PROMPTS]
    decoding = Decoding(model, PROMPTS, 6, start_id=0)
    logits = decoding.start()
    for step in range(5):
        want = torch.cat([full(model, prompt, new) for prompt, new in rows])
        torch.testing.assert_close(logits, want, rtol=0, atol=1e-9 * float(want.abs().max()))
        if step == 2:
            decoding.keep([2, 0, 2])
            rows = [(rows[number][0], list(rows[number][1])) for number in (2, 0, 2)]
        tokens = [(7 * step + 3 * number + 11) % 60 for number in range(len(rows))]
        for (_, new), token in zip(rows, tokens, strict=True):
            new.append(token)
        logits = decoding.step(tokens)


@pytest.mark.parametrize("preset", ["llama_tiny", "lstm_tiny", "mamba_tiny", "t5_small", "bart_base"])
def test_greedy_and_beams_agree_with_it(preset):
    model = small(preset)
    options = {"max_tokens": 6, "end_id": 0}
    greedy = generate(model, PROMPTS, **options, sampling=GREEDY)
    assert greedy == [generate(model, [prompt], **options, sampling=GREEDY)[0] for prompt in PROMPTS]
    wide = beam_search(model, PROMPTS, **options, beams=3)
    assert wide == [beam_search(model, [prompt], **options, beams=3)[0] for prompt in PROMPTS]


def read_whole(model, prompt, new, reading):
    """The same by one forward: the prompt in both directions, what is written behind it."""
    tokens, count = prompt + new, len(prompt)
    place = torch.arange(len(tokens))[None]
    inside = count - 1 if reading is Reading.blank else count  # a blank's start token is written text
    mask = PrefixMask((place < inside).long(), torch.ones_like(place))
    if reading is Reading.blank:
        hole = count - 2
        place = torch.stack((place.clamp_max(hole), (place - hole).clamp_min(0)), 1)
    return model.head(model(torch.tensor([tokens]), Context(place, mask))[:, -1])


@torch.no_grad()
@pytest.mark.parametrize(
    ("preset", "reading"),
    [("llama_tiny", Reading.both), ("gpt2_tiny", Reading.both), ("chatglm_6b", Reading.blank), ("glm_10b", Reading.blank)],
)
def test_prompts_that_are_read_in_both_directions(preset, reading):
    model = small(preset)
    prompts = [[*prompt, 50, 51] for prompt in PROMPTS]
    rows = [(prompt, []) for prompt in prompts]
    decoding = Decoding(model, prompts, 5, reading=reading)
    logits = decoding.start()
    for step in range(4):
        want = torch.cat([read_whole(model, prompt, new, reading) for prompt, new in rows])
        torch.testing.assert_close(logits, want, rtol=0, atol=1e-9 * float(want.abs().max()))
        if step == 1:
            decoding.keep([2, 0])
            rows = [rows[2], rows[0]]
        tokens = [(7 * step + 3 * number + 11) % 60 for number in range(len(rows))]
        for (_, new), token in zip(rows, tokens, strict=True):
            new.append(token)
        logits = decoding.step(tokens)


def test_an_end_token_that_the_tokenizer_does_not_know_can_be_chosen():
    """Ids above the tokenizer's are never chosen, but for the one that ends a blank."""
    model = small("llama_tiny")
    top = model.spec.vocab_size - 1
    model.head.register_forward_hook(lambda module, inputs, logits: logits.index_fill(-1, torch.tensor([top, top - 1]), 1e6))
    assert generate(model, [[1, 2]], max_tokens=4, vocab_size=60, end_id=top, sampling=GREEDY) == [[]]
    assert max(generate(model, [[1, 2]], max_tokens=4, vocab_size=60, end_id=0, sampling=GREEDY)[0]) < 60
