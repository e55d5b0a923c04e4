"""Decoding with a state equals a full forward, for every kind of model that writes text."""

from __future__ import annotations

import pytest
import torch

from llmfactory.config.compose import compose_job
from llmfactory.core.context import CausalMask, Context, FullMask, Source
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
