"""Batched generation with a key/value cache.

Prompts of different lengths are padded on the left. Padding is a document of its own (segment 0) and a prompt's positions
start at 0 behind it, so a row computes what it would compute alone. Random numbers of a row come from the seed, its
prompt and how many equal prompts stand before it, so a row's tokens do not depend on who shares the batch either.

Columns: every row's step t stands in the same column, so keys are causal by column.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from llmfactory.core.context import CausalMask, Context, DocumentMask, FullMask, Mask
from llmfactory.core.errors import UserError
from llmfactory.core.sharding import name_seed
from llmfactory.inference.cache import KvCache
from llmfactory.inference.sampler import sample
from llmfactory.model.skeleton import Skeleton


def generate(
    model: Skeleton,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    end_id: int | None = None,
    vocab_size: int | None = None,
    seed: int = 0,
    on_token: Callable[[int, int], object] | None = None,
) -> list[list[int]]:
    """Continue each prompt by at most `max_tokens` tokens; returns the new tokens, without prompt and without `end_id`.

    Args:
        prompts: token ids, at least one each (a text from its beginning starts with the end-of-document token).
        temperature: divides the logits; 0 takes the most likely token.
        top_k, top_p: see `sampler.py`; None: no limit.
        end_id: the token at which a row ends; None: rows end at `max_tokens` only.
        vocab_size: ids of the tokenizer. A model may have rows for more (padding), which stand for nothing and are never
            chosen; None: all.
        on_token: called with (row, token) as soon as a token is known, rows in order.

    Raises:
        UserError: an empty prompt, a token outside the vocabulary, more tokens than there are learned positions, or a model
            that computes NaN.

    Where positions have no end (rotary, none), a row longer than `max_positions` is still fitted into them, with a warning:
    a prompt gives up its oldest tokens until the new ones fit or half of the positions are left to it, then there are
    fewer new tokens.
    """
    rows = [list(prompt) for prompt in prompts]
    _check(rows, model.head.weight.shape[0])
    if not rows or max_tokens < 1:
        return [[] for _ in rows]
    rows, limits = _fit(model, rows, max_tokens)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return _decode(model, rows, limits, temperature, top_k, top_p, end_id, vocab_size, seed, on_token)
    finally:
        model.train(training)


def _decode(
    model: Skeleton,
    prompts: list[list[int]],
    limits: list[int],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    end_id: int | None,
    vocab_size: int | None,
    seed: int,
    on_token: Callable[[int, int], object] | None,
) -> list[list[int]]:
    device = model.head.weight.device
    generators = _generators(prompts, seed)
    new: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    width = max(map(len, prompts))
    cache = KvCache(width + max(limits) - 1)
    tokens_BT = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    padding = [width - len(prompt) for prompt in prompts]
    start, end = 0, width
    while True:
        hidden_BTD = model(tokens_BT, _columns(padding, start, end, device).with_(state=cache))
        logits_BV = model.head(hidden_BTD[:, -1])[:, :vocab_size]
        if logits_BV.isnan().any():
            raise UserError("the model's logits are not numbers: its weights hold NaN or too large values")
        uniform_B = torch.stack([torch.rand((), generator=generators[row], dtype=torch.float64) for row in alive])
        chosen = sample(logits_BV, uniform_B.to(device), temperature, top_k, top_p).tolist()
        going = []
        for index, (row, token) in enumerate(zip(alive, chosen, strict=True)):
            if token == end_id:
                continue
            new[row].append(token)
            if on_token is not None:
                on_token(row, token)
            if len(new[row]) < limits[row]:
                going.append(index)
        if not going:
            return new
        if len(going) < len(alive):
            cache.keep(going)
            padding = [padding[index] for index in going]
        tokens_BT = torch.tensor([[chosen[index]] for index in going], device=device)
        alive = [alive[index] for index in going]
        start, end = end, end + 1


def _columns(padding: list[int], start: int, end: int, device: torch.device) -> Context:
    """Positions of the tokens in the columns [start, end), and what they see of all columns before `end`."""
    padding_B1 = torch.tensor(padding, device=device)[:, None]
    columns_S = torch.arange(end, device=device).expand(len(padding), end)
    columns_BT = columns_S[:, start:]
    positions_BS = (columns_S - padding_B1).clamp_min(0)
    mask: Mask
    segments_BT = None
    if any(padding):
        segments_BS = (columns_S >= padding_B1).long()
        segments_BT = segments_BS[:, start:]
        mask = DocumentMask(segments_BT, segments_BS, columns_BT, columns_S)
    else:
        mask = FullMask() if end - start == 1 else CausalMask(end, device)
    return Context(positions_BS[:, start:], mask, segments=segments_BT, key_positions=positions_BS)


def _generators(prompts: list[list[int]], seed: int) -> list[torch.Generator]:
    """A source of random numbers for each row; equal prompts get different ones."""
    seen: Counter[str] = Counter()
    generators = []
    for prompt in prompts:
        name = str(prompt)
        generators.append(torch.Generator().manual_seed(name_seed(seed, f"{name}:{seen[name]}")))
        seen[name] += 1
    return generators


def _check(prompts: list[list[int]], vocab_size: int) -> None:
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"prompt {row} is empty: begin it with the end-of-document token")
        wrong = next((token for token in prompt if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise UserError(f"prompt {row} holds the token {wrong}, but the model's vocabulary has {vocab_size} tokens")


def _fit(model: Skeleton, prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], list[int]]:
    """The prompts, and for each the number of new tokens, that the model's positions allow."""
    # The last new token is never fed back, so it needs no position.
    room = model.spec.max_positions + 1
    widest = max(map(len, prompts))
    if widest + max_tokens <= room:
        return prompts, [max_tokens] * len(prompts)
    if model.position_limit is not None:
        raise UserError(
            f"a prompt of {widest} tokens and {max_tokens} new ones do not fit into the model's {model.position_limit} "
            f"learned positions: shorten the prompt or ask for at most {max(0, room - widest)} tokens"
        )
    kept = max(room - max_tokens, room // 2)
    warnings.warn(
        f"the model was made for rows of {model.spec.max_positions} tokens: "
        f"prompts keep their last {kept} tokens and all new tokens end there",
        stacklevel=3,
    )
    prompts = [prompt[-kept:] for prompt in prompts]
    return prompts, [min(max_tokens, room - len(prompt)) for prompt in prompts]
