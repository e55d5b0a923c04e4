"""What a model makes of held-out examples, in the figures of their task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from llmfactory.data.examples import Examples
from llmfactory.data.task.answer import Answering
from llmfactory.data.task.classify import Classification
from llmfactory.data.task.rewrite import Rewriting, start_id
from llmfactory.data.task.spec import Figures
from llmfactory.data.task.tag import Tagging
from llmfactory.data.task.task import Row, Task
from llmfactory.inference.beam import beam_search
from llmfactory.inference.generate import generate
from llmfactory.inference.sampler import GREEDY
from llmfactory.metric.answers import exact_match, overlap_f1
from llmfactory.metric.classes import accuracy, macro_f1
from llmfactory.metric.entities import entity_scores
from llmfactory.metric.texts import bleu, rouge
from llmfactory.model.skeleton import Skeleton
from llmfactory.parallel.mesh import World
from llmfactory.precision.plugin import MeshPrecision

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch

Found = dict[int, Any]
"""Prediction for each row, by number."""
NONE = "O"
"""Tag of a word that is no part of anything."""


@torch.no_grad()
def score(
    model: Skeleton, examples: Examples, seq_len: int, precision: MeshPrecision, world: World, batch_size: int
) -> dict[str, float]:
    """Figures over all held-out examples; the processes share the rows, and each gets the same figures."""
    rows, task = examples.rows["held_out"], examples.task
    was_training = model.training
    model.eval()
    mine = list(range(world.rank, len(rows), world.size))
    found: Found = {}
    table = examples.of("held_out", seq_len)
    predict, figures = _WAYS[type(task)]
    for start in range(0, len(mine), batch_size):
        numbers = mine[start : start + batch_size]
        batch = {name: field.to(world.device) for name, field in table.read(np.array(numbers)).items()}
        with precision.forward_context():
            found |= dict(zip(numbers, predict(model, batch, [rows[number] for number in numbers], examples), strict=True))
    model.train(was_training)
    everything = {number: one for part in world.gather(found) for number, one in part.items()}
    return figures(examples, [everything[number] for number in range(len(rows))])


def _hidden(model: Skeleton, batch: Batch) -> Tensor:
    return model(batch["tokens"], model.context(batch))  # type: ignore[no-any-return]


# ---- one class


def _classes(model: Skeleton, batch: Batch, rows: Sequence[Row], examples: Examples) -> list[str]:
    pooled = model.head.pool(_hidden(model, batch), batch["segments"], 1)
    return [examples.task.labels[number] for number in model.head(pooled)[:, 0, : len(examples.task.labels)].argmax(-1).tolist()]


def _class_figures(examples: Examples, found: Sequence[str]) -> dict[str, float]:
    expected = [examples.task.labels[row.fields["labels"][0]] for row in examples.rows["held_out"]]
    return {"accuracy": accuracy(found, expected), "macro_f1": macro_f1(found, expected)}


# ---- a tag for each word


def _tags(model: Skeleton, batch: Batch, rows: Sequence[Row], examples: Examples) -> list[list[str]]:
    names = examples.task.labels
    numbers = model.head(_hidden(model, batch))[..., : len(names)].argmax(-1).tolist()
    found = []
    for row, one in zip(rows, numbers, strict=True):
        tags = [names[one[place]] for place in row.extra["firsts"]]
        found.append(tags + [NONE] * (len(row.extra["tags"]) - len(tags)))  # words that were cut off
    return found


def _tag_figures(examples: Examples, found: Sequence[list[str]]) -> dict[str, float]:
    expected = [row.extra["tags"] for row in examples.rows["held_out"]]
    words = accuracy([tag for tags in found for tag in tags], [tag for tags in expected for tag in tags])
    return {"accuracy": words, **entity_scores(found, expected)}


# ---- a part of a text


def _spans(model: Skeleton, batch: Batch, rows: Sequence[Row], examples: Examples) -> list[tuple[float, str, float]]:
    """Of each row, score and text of its best span, and the score of there being none."""
    assert isinstance(examples.task, Answering)
    scores_BT2 = model.head(_hidden(model, batch)).float().log_softmax(1).cpu()
    return [_best(scores_T2, row, examples.task.spec.longest) for scores_T2, row in zip(scores_BT2, rows, strict=True)]


def _best(scores_T2: Tensor, row: Row, longest: int) -> tuple[float, str, float]:
    offset, spans = row.extra["offset"], row.extra["spans"]
    nothing = float(scores_T2[0, 0] + scores_T2[0, 1])
    if not spans:
        return float("-inf"), "", nothing
    first, last = scores_T2[offset : offset + len(spans)].unbind(-1)
    total = first[:, None] + last[None, :]
    allowed = torch.ones_like(total, dtype=torch.bool).triu().tril(longest - 1)
    place = int(total.masked_fill(~allowed, float("-inf")).argmax())
    start, end = divmod(place, len(spans))
    return float(total[start, end]), row.extra["context"][spans[start][0] : spans[end][1]], nothing


def _span_figures(examples: Examples, found: Sequence[tuple[float, str, float]]) -> dict[str, float]:
    """Of several windows of a text, the best span counts; no answer is one if training has such questions."""
    rows = examples.rows["held_out"]
    may_be_none = any(not row.extra["right"] for row in examples.rows["train"])
    windows: dict[int, list[tuple[float, str, float]]] = defaultdict(list)
    right: dict[int, list[str]] = {}
    for row, one in zip(rows, found, strict=True):
        windows[row.example].append(one)
        right[row.example] = row.extra["right"]
    exact, overlap = [], []
    for number, seen in windows.items():
        best, text, _ = max(seen)
        if may_be_none and min(nothing for *_, nothing in seen) > best:
            text = ""
        exact.append(exact_match(text, right[number]))
        overlap.append(overlap_f1(text, right[number]))
    return {"exact_match": sum(exact) / len(exact), "f1": sum(overlap) / len(overlap)}


# ---- another text


def _texts(model: Skeleton, batch: Batch, rows: Sequence[Row], examples: Examples) -> list[str]:
    task, tokenizer = examples.task, examples.tokenizer
    assert isinstance(task, Rewriting)
    prompts = [row.extra["source"] for row in rows]
    ends: dict[str, Any] = {"end_id": tokenizer.end_id, "start_id": start_id(tokenizer), "vocab_size": tokenizer.vocab_size}
    longest = batch["tokens"].shape[1]
    if task.spec.beams > 1:
        written = beam_search(model, prompts, beams=task.spec.beams, max_tokens=longest, **ends)
    else:
        written = generate(model, prompts, max_tokens=longest, sampling=GREEDY, **ends)
    return [tokenizer.decode(tokens) for tokens in written]


def _text_figures(examples: Examples, found: Sequence[str]) -> dict[str, float]:
    assert isinstance(examples.task, Rewriting)
    measure = bleu if examples.task.spec.figures is Figures.bleu else rouge
    return measure(found, [row.extra["right"] for row in examples.rows["held_out"]])


Predict = Callable[[Skeleton, "Batch", Sequence[Row], Examples], Sequence[Any]]
_WAYS: dict[type[Task], tuple[Predict, Callable[[Examples, Sequence[Any]], dict[str, float]]]] = {
    Classification: (_classes, _class_figures),
    Tagging: (_tags, _tag_figures),
    Answering: (_spans, _span_figures),
    Rewriting: (_texts, _text_figures),
}
