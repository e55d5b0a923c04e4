"""Answers that a model writes to prompts, as rows to learn from.

| key | shape | meaning |
|---|---|---|
| `tokens`, `labels`, `positions`, `segments` | [N, T] | prompt and answer; labels are the answer's tokens, its end among them |

The draws of an answer depend on the seed and on its number alone, so answers are the same whoever writes them, and beside whom.

Shapes: N answers, T tokens of the longest prompt with its answer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from llmfactory.core.batch import IGNORE
from llmfactory.core.sharding import name_seed
from llmfactory.inference.generate import generate
from llmfactory.inference.sampler import Sampling
from llmfactory.objective.actor_critic import CRITIC, values_of
from llmfactory.objective.reference import reference_of

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.model.skeleton import Skeleton

TOGETHER = 1 << 15
"""Tokens, prompts and room for answers, that are written at once."""
ROWS = 16
"""Answers that are scored at once where the config names no size."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt that is put to the model."""

    number: int
    """Of all prompts that the run has put, counted from 0."""
    tokens: list[int]
    messages: list[dict[str, Any]]
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Written:
    """What the model wrote."""

    tokens: list[int]
    """The token that ends it is the last one, where it came."""
    ended: bool


def write(
    model: Skeleton,
    asked: Sequence[Asked],
    each: int,
    *,
    max_tokens: int,
    sampling: Sampling,
    vocab_size: int,
    stop_ids: Collection[int],
    seed: int,
) -> list[Written]:
    """`each` answers to every prompt, one prompt after the other. Prompts of similar length are read together."""
    numbers = [(number, answer) for number in range(len(asked)) for answer in range(each)]
    numbers.sort(key=lambda one: (len(asked[one[0]].tokens), one))
    found: dict[tuple[int, int], Written] = {}
    while numbers:
        widest = len(asked[numbers[0][0]].tokens)
        some = numbers[: max(1, TOGETHER // (widest + max_tokens))]
        numbers = numbers[len(some) :]
        texts = generate(
            model,
            [asked[number].tokens for number, _ in some],
            max_tokens=max_tokens,
            sampling=sampling,
            vocab_size=vocab_size,
            seeds=[name_seed(seed, f"answer {answer} to prompt {asked[number].number}") for number, answer in some],
            stop_ids=stop_ids,
        )
        for one, tokens in zip(some, texts, strict=True):
            found[one] = Written(tokens, bool(tokens) and tokens[-1] in stop_ids)
    return [found[number, answer] for number in range(len(asked)) for answer in range(each)]


def laid_out(prompts: Sequence[Sequence[int]], written: Sequence[Written], end_id: int) -> Batch:
    """Rows of prompts with their answers, padded on the right."""
    wholes = [[*prompt, *one.tokens] for prompt, one in zip(prompts, written, strict=True)]
    lengths_N1 = torch.tensor([[len(whole) - 1] for whole in wholes])
    begin_N1 = torch.tensor([[len(prompt) - 1] for prompt in prompts])
    width = int(lengths_N1.max())
    whole_NT = torch.tensor([[*whole, *[end_id] * (width + 1 - len(whole))] for whole in wholes])
    places_T = torch.arange(width)
    inside_NT = places_T < lengths_N1
    return {
        "tokens": whole_NT[:, :-1].contiguous(),
        "labels": whole_NT[:, 1:].where(inside_NT & (places_T >= begin_N1), IGNORE),
        "positions": (places_T * inside_NT),
        "segments": inside_NT.long(),
    }


def chosen(batch: Batch, index: Tensor, width: int | None = None) -> Batch:
    """These rows, `width` tokens wide (None: as wide as the longest of them)."""
    lengths = batch["segments"][index].sum(1)
    width = int(lengths.max()) if width is None else width
    return {name: field[index, :width] if field.dim() > 1 else field[index] for name, field in batch.items()}


@torch.no_grad()
def score(
    model: Skeleton, batch: Batch, *, temperature: float, policy: bool, reference: bool, rows_at_once: int | None
) -> dict[str, Tensor]:
    """What objectives need to know of the answers: `old_logps` under the policy, `reference_token_logps`, `old_values` where there is a
    critic, [N, T] float64 each, 0 beside answers."""
    device, width = model.head.weight.device, batch["tokens"].shape[1]
    order = batch["segments"].sum(1).argsort(stable=True)
    found: dict[str, list[Tensor]] = {}
    training = model.training
    model.eval()
    for numbers in order.split(rows_at_once or ROWS):  # type: ignore[no-untyped-call]
        piece = {name: field.to(device) for name, field in chosen(batch, numbers).items()}
        context = model.context(piece, isolated=False)
        wanted: dict[str, Tensor] = {}
        if policy:
            wanted["old_logps"] = _logps(model, piece, context, temperature)
        if reference:
            with reference_of(model) as frozen:
                wanted["reference_token_logps"] = _logps(frozen, piece, context, temperature)
        if hasattr(model, CRITIC):
            wanted["old_values"] = values_of(model, piece, context) * (piece["labels"] != IGNORE)
        for name, values in wanted.items():
            found.setdefault(name, []).append(pad(values.double().cpu(), (0, width - values.shape[1])))
    model.train(training)
    back = order.argsort()
    return {name: torch.cat(parts)[back] for name, parts in found.items()}


def _logps(model: Skeleton, batch: Batch, context: Any, temperature: float) -> Tensor:
    return model.head.log_probs(model(batch["tokens"], context), batch["labels"], temperature)
