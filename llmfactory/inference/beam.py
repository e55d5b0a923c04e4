"""Beam search (Graves 2012): of all continuations, keep the few most likely ones at each length.

A finished hypothesis (one that ended with the end token) scores log p / length^length_penalty, the end token counted. A
prompt is done when as many hypotheses as beams are finished and the best that still goes on, at its present length, scores
no better than the worst of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from llmfactory.core.context import Reading
from llmfactory.inference.decoding import Decoding, evaluating
from llmfactory.inference.generate import check_prompts, fit
from llmfactory.model.skeleton import Skeleton


@dataclass(slots=True)
class _Beam:
    """A row that goes on."""

    tokens: list[int]
    score: float
    """Log-probability of its tokens."""


@dataclass(slots=True)
class _Search:
    """Of one prompt."""

    going: list[_Beam]
    finished: list[tuple[float, list[int]]] = field(default_factory=list)

    def finish(self, score: float, tokens: list[int], beams: int) -> None:
        self.finished.append((score, tokens))
        self.finished.sort(key=lambda entry: -entry[0])
        del self.finished[beams:]

    def done(self, beams: int, length: int, penalty: float) -> bool:
        best = max(beam.score for beam in self.going) / length**penalty
        return len(self.finished) == beams and self.finished[-1][0] >= best


def beam_search(
    model: Skeleton,
    prompts: Sequence[Sequence[int]],
    *,
    beams: int,
    max_tokens: int,
    end_id: int | None = None,
    start_id: int | None = None,
    vocab_size: int | None = None,
    reading: Reading = Reading.forward,
    length_penalty: float = 1.0,
) -> list[list[int]]:
    """The best continuation of each prompt, without prompt and without `end_id`; arguments as in `generate`."""
    rows = [list(prompt) for prompt in prompts]
    check_prompts(rows, model.head.weight.shape[0])
    if not rows or max_tokens < 1:
        return [[] for _ in rows]
    rows, limits = fit(model, rows, max_tokens)
    ids = {"vocab_size": vocab_size, "start_id": start_id, "end_id": end_id}
    with evaluating(model):
        decoding = Decoding(model, rows, min(limits), **ids, reading=reading)
        return _search(decoding, len(rows), min(limits), beams, end_id, length_penalty)


def _search(decoding: Decoding, count: int, max_tokens: int, beams: int, end_id: int | None, penalty: float) -> list[list[int]]:
    searches = [_Search([_Beam([], 0.0)]) for _ in range(count)]
    active = searches
    logits_BV = decoding.start()
    for length in range(1, max_tokens + 1):
        logp_BV = logits_BV.double().log_softmax(-1)
        parents: list[int] = []
        first = 0  # row of the search's first beam
        still = []
        for search in active:
            width = len(search.going)
            scores = torch.tensor([beam.score for beam in search.going], dtype=torch.float64, device=logp_BV.device)
            total = logp_BV[first : first + width] + scores[:, None]
            # Twice as many, so that enough go on even if every beam could end here.
            values, flat = total.flatten().topk(min(2 * beams, total.numel()))
            going: list[_Beam] = []
            origins: list[int] = []
            for rank, (score, index) in enumerate(zip(values.tolist(), flat.tolist(), strict=True)):
                parent, token = divmod(index, total.shape[1])
                tokens = search.going[parent].tokens
                if token == end_id:
                    if rank < beams:
                        search.finish(score / length**penalty, tokens, beams)
                elif len(going) < beams:
                    going.append(_Beam([*tokens, token], score))
                    origins.append(first + parent)
            search.going = going
            first += width
            if not search.done(beams, length, penalty):
                still.append(search)
                parents += origins
        active = still
        if not active or length == max_tokens:
            break
        decoding.keep(parents)
        logits_BV = decoding.step([beam.tokens[-1] for search in active for beam in search.going])
    for search in active:
        for beam in search.going:
            search.finish(beam.score / len(beam.tokens) ** penalty, beam.tokens, beams)
    return [search.finished[0][1] for search in searches]
