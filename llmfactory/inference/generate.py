"""Batched generation: continue prompts (or answer them, where a model has an encoder) token by token.

Random numbers of a row come from the seed, its prompt and how many equal prompts stand before it, so a row's tokens do not
depend on who shares the batch.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmfactory.core.context import Reading
from llmfactory.core.errors import UserError
from llmfactory.core.sharding import name_seed
from llmfactory.inference.decoding import Decoding, evaluating
from llmfactory.inference.sampler import Sampling, sample
from llmfactory.model.skeleton import Skeleton


class Shortened(UserWarning):
    """Prompts or answers were cut to what the model's positions allow."""


OnToken = Callable[[int, int], object]
"""Called with (row, token) as soon as a token is known, rows in order; what is true ends the row after this token."""


def generate(
    model: Skeleton,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: Sampling | None = None,
    end_id: int | None = None,
    start_id: int | None = None,
    vocab_size: int | None = None,
    reading: Reading = Reading.forward,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    stop_ids: Collection[int] = (),
    on_token: OnToken | None = None,
) -> list[list[int]]:
    """Continue each prompt by at most `max_tokens` tokens; returns the new tokens, without prompt and without `end_id`.

    Args:
        prompts: token ids, at least one each (a text from its beginning starts with the end-of-document token).
        sampling: how tokens are drawn; None: from the model's own distribution.
        end_id: the token at which a row ends; None: rows end at `max_tokens` only.
        start_id: the first token of an answer, for models with an encoder; None: `end_id`.
        vocab_size: ids of the tokenizer. A model may have rows for more (padding), which stand for nothing and are never
            chosen; None: all.
        reading: how the model reads the prompts; `Objective.prompt` makes them as it wants them.
        seeds: of each row's random numbers; None: they come from `seed`, the prompt and how many equal ones stand before it.
        stop_ids: tokens at which a row ends, and which it keeps.
        on_token: see `OnToken`; stop strings and streaming are made of it.

    Raises:
        UserError: an empty prompt, a token outside the vocabulary, more tokens than there are learned positions, or a model
            that computes NaN.

    Where positions have no end (rotary, none), a row longer than `max_positions` is still fitted into them, with a warning:
    a prompt gives up its oldest tokens until the new ones fit or half of the positions are left to it, then there are
    fewer new tokens.
    """
    rows = [list(prompt) for prompt in prompts]
    check_prompts(rows, model.head.weight.shape[0])
    if not rows or max_tokens < 1:
        return [[] for _ in rows]
    rows, limits = fit(model, rows, max_tokens)
    ids = {"vocab_size": vocab_size, "start_id": start_id, "end_id": end_id}
    with evaluating(model):
        first, place = _different(rows)
        decoding = Decoding(model, first, max(limits) - 1, **ids, reading=reading)
        logits_BV = decoding.start()
        if len(first) < len(rows):  # equal prompts are read once
            decoding.keep(place)
            logits_BV = logits_BV[torch.tensor(place, device=logits_BV.device)]
        generators = _generators(rows, seed) if seeds is None else [torch.Generator().manual_seed(one) for one in seeds]
        ends = _Ends(end_id, frozenset(stop_ids), on_token)
        return _decode(decoding, logits_BV, rows, limits, sampling or Sampling(), generators, ends)


@dataclass(frozen=True, slots=True)
class _Ends:
    """What ends a row."""

    end_id: int | None
    stop_ids: frozenset[int]
    on_token: OnToken | None


def _decode(
    decoding: Decoding,
    logits_BV: Tensor,
    prompts: list[list[int]],
    limits: list[int],
    sampling: Sampling,
    generators: list[torch.Generator],
    ends: _Ends,
) -> list[list[int]]:
    new: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    seen_BV = _seen(prompts, logits_BV) if sampling.repetition_penalty != 1 else None
    while True:
        uniform_B = torch.stack([torch.rand((), generator=generators[row], dtype=torch.float64) for row in alive])
        chosen_B = sample(logits_BV, uniform_B.to(logits_BV.device), sampling, seen_BV)
        chosen = chosen_B.tolist()
        going = []
        for index, (row, token) in enumerate(zip(alive, chosen, strict=True)):
            if token == ends.end_id:
                continue
            new[row].append(token)
            ended = token in ends.stop_ids or (ends.on_token is not None and ends.on_token(row, token))
            if not ended and len(new[row]) < limits[row]:
                going.append(index)
        if not going:
            return new
        if seen_BV is not None:
            seen_BV = seen_BV.scatter(1, chosen_B[:, None], True)[torch.tensor(going, device=seen_BV.device)]
        if len(going) < len(alive):
            decoding.keep(going)
        alive = [alive[index] for index in going]
        logits_BV = decoding.step([chosen[index] for index in going])


def _different(prompts: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """The prompts that differ, and the place of each row's among them."""
    places: dict[tuple[int, ...], int] = {}
    found = [places.setdefault(tuple(prompt), len(places)) for prompt in prompts]
    return [list(prompt) for prompt in places], found


def _seen(prompts: list[list[int]], logits_BV: Tensor) -> Tensor:
    """[B, V], True at the tokens of each prompt."""
    seen_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        seen_BV[row, torch.tensor([token for token in prompt if token < seen_BV.shape[1]], dtype=torch.long)] = True
    return seen_BV


def _generators(prompts: list[list[int]], seed: int) -> list[torch.Generator]:
    """A source of random numbers for each row; equal prompts get different ones."""
    seen: Counter[str] = Counter()
    generators = []
    for prompt in prompts:
        name = str(prompt)
        generators.append(torch.Generator().manual_seed(name_seed(seed, f"{name}:{seen[name]}")))
        seen[name] += 1
    return generators


def check_prompts(prompts: list[list[int]], vocab_size: int) -> None:
    """Each prompt has tokens, and the model knows them."""
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"prompt {row} is empty: begin it with the end-of-document token")
        wrong = next((token for token in prompt if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise UserError(f"prompt {row} holds the token {wrong}, but the model's vocabulary has {vocab_size} tokens")


def fit(model: Skeleton, prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], list[int]]:
    """The prompts, and for each the number of new tokens, that the model's positions allow."""
    # The last new token is never fed back, so it needs no position.
    room = model.spec.max_positions - model.preceding + 1
    widest = max(map(len, prompts))
    limit = model.position_limit
    if model.spec.graph == "encoder_decoder":  # both sides have positions of their own; the start token takes one
        if limit is not None and max(widest, max_tokens) > (limit := limit - model.preceding):
            raise UserError(
                f"a prompt of {widest} tokens and an answer of {max_tokens} do not fit into {limit} learned positions"
            )
        return prompts, [max_tokens] * len(prompts)
    if widest + max_tokens <= room:
        return prompts, [max_tokens] * len(prompts)
    if limit is not None:
        raise UserError(
            f"a prompt of {widest} tokens and {max_tokens} new ones do not fit into the model's {limit} "
            f"learned positions: shorten the prompt or ask for at most {max(0, room - widest)} tokens"
        )
    kept = max(room - max_tokens, room // 2)
    warnings.warn(
        f"the model was made for rows of {model.spec.max_positions} tokens: "
        f"prompts keep their last {kept} tokens and all new tokens end there",
        Shortened,
        stacklevel=3,
    )
    prompts = [prompt[-kept:] for prompt in prompts]
    return prompts, [min(max_tokens, room - len(prompt)) for prompt in prompts]
