"""Beam search against a search that keeps nothing between steps, and its limits."""

from __future__ import annotations

import pytest
import torch

from llmfactory.core.context import CausalMask, Context
from llmfactory.inference.beam import beam_search
from llmfactory.inference.generate import generate
from llmfactory.inference.sampler import GREEDY

PROMPTS = [[5, 6, 7], [1], [9, 8, 7, 6, 5, 4, 3, 2]]


def log_probabilities(model, tokens):
    length = len(tokens)
    hidden = model(torch.tensor([tokens]), Context(torch.arange(length)[None], CausalMask(length)))
    return model.head(hidden[:, -1])[0].double().log_softmax(-1)


def reference(model, prompt, beams, max_tokens, end_id, penalty):
    """The definition, with a full forward for each beam and step."""
    going, finished = [([], 0.0)], []
    for length in range(1, max_tokens + 1):
        candidates = []
        for tokens, score in going:
            for token, logp in enumerate(log_probabilities(model, prompt + tokens).tolist()):
                candidates.append((score + logp, tokens, token))
        candidates.sort(key=lambda entry: -entry[0])
        going = []
        for rank, (score, tokens, token) in enumerate(candidates[: 2 * beams]):
            if token == end_id:
                if rank < beams:
                    finished.append((score / length**penalty, tokens))
            elif len(going) < beams:
                going.append(([*tokens, token], score))
        finished = sorted(finished, key=lambda entry: -entry[0])[:beams]
        if len(finished) == beams and finished[-1][0] >= going[0][1] / length**penalty:
            return finished[0][1]
    finished += [(score / len(tokens) ** penalty, tokens) for tokens, score in going]
    return max(finished, key=lambda entry: entry[0])[1]


@pytest.mark.parametrize(("beams", "penalty"), [(2, 1.0), (4, 0.0), (3, 2.0)])
def test_equals_the_definition(model, beams, penalty):
    """Rows of several lengths at once, some of which end early."""
    with torch.no_grad():
        end_id = int(log_probabilities(model, PROMPTS[1]).argsort(descending=True)[1])
        want = [reference(model, prompt, beams, 7, end_id, penalty) for prompt in PROMPTS]
    options = {"beams": beams, "max_tokens": 7, "end_id": end_id, "length_penalty": penalty}
    assert beam_search(model, PROMPTS, **options) == want


def test_one_beam_is_greedy(model):
    assert beam_search(model, PROMPTS, beams=1, max_tokens=9) == generate(model, PROMPTS, max_tokens=9, sampling=GREEDY)


def test_more_beams_find_what_is_more_likely(model):
    def score(prompt, tokens):
        with torch.no_grad():
            return sum(float(log_probabilities(model, prompt + tokens[:t])[token]) for t, token in enumerate(tokens))

    for prompt in PROMPTS:
        greedy, wide = (beam_search(model, [prompt], beams=beams, max_tokens=6)[0] for beams in (1, 30))
        assert score(prompt, wide) >= score(prompt, greedy)


def test_more_beams_than_tokens(model):
    assert len(beam_search(model, [[1]], beams=5, max_tokens=3, vocab_size=3)[0]) == 3
    assert beam_search(model, [], beams=2, max_tokens=3) == []
    assert beam_search(model, [[1]], beams=2, max_tokens=0) == [[]]
