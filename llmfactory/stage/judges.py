"""Trained models for the steps of data/clean that ask one: opened once in each process, on the CPU, in float32.

Texts go through a model in rows, as long as the rows that it was trained on; the likelihood of one that is longer is the sum over
its rows, each of which begins anew. How wide a row is padded depends on the row alone, so that a text's figures do not depend on
which other texts come along, but for the last bits of a float.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from llmfactory.checkpoint import io
from llmfactory.checkpoint.files import fingerprint
from llmfactory.checkpoint.names.folder import is_adapter
from llmfactory.checkpoint.names.published import is_published, open_published
from llmfactory.config.saved import saved_spec
from llmfactory.core.batch import IGNORE
from llmfactory.core.errors import UserError
from llmfactory.data.examples import saved_labels
from llmfactory.data.spec import DataSpec, Labelled
from llmfactory.data.task.classify import marked
from llmfactory.data.task.spec import Classify
from llmfactory.data.task.task import ExampleRows, Row, fields_of
from llmfactory.data.tokenizer.tokenizer import FOLDER
from llmfactory.model.skeleton import Skeleton
from llmfactory.model.spec import ModelSpec
from llmfactory.objective.objective import Objective
from llmfactory.objective.spec import ObjectiveSpec
from llmfactory.stage.base import BASE, trained_part
from llmfactory.stage.evaluate import objective_of
from llmfactory.stage.initial import fill, load_tokenizer

T = TypeVar("T")
NARROWEST = 32
"""Tokens that the shortest rows are padded to."""
AT_ONCE = 1 << 13
"""Tokens that go through a model together."""
READ = (".safetensors", ".gguf", ".json", ".txt", ".model")
"""Ends of the files of a published model that matter."""


TRAINED_ON = ("stage", "objective")


def find(init: str) -> Path:
    """The checkpoint that `init` means. Raises UserError where there is none."""
    path = Path(init).expanduser().resolve()
    return path if is_published(path) else io.find(path)


def content_of(checkpoint: Path) -> str:
    """Hash of the weights, the tokenizer, and what says how they are used."""
    if is_published(checkpoint):
        files = [checkpoint] if checkpoint.is_file() else sorted(p for p in checkpoint.iterdir() if p.suffix in READ)
        about: dict[str, Any] = {path.name: fingerprint(path) for path in files}
        if is_adapter(checkpoint):
            about[BASE] = content_of(open_published(checkpoint).path)
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()
    state = io.read_state(checkpoint)
    listed = state["files"]
    content = {name: listed[name] for name in sorted(listed) if name.endswith(".safetensors") or name.startswith(f"{FOLDER}/")}
    if BASE in state:
        content[BASE] = state[BASE]
    told = [
        content,
        repr(model_spec(checkpoint)),
        row_length(checkpoint),
        repr(saved_spec(checkpoint, ObjectiveSpec, *TRAINED_ON)),
    ]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def model_spec(checkpoint: Path) -> ModelSpec:
    spec = open_published(checkpoint).spec if is_published(checkpoint) else saved_spec(checkpoint, ModelSpec, "model")
    if spec is None:
        raise UserError(f"{checkpoint} does not say what model it is of: it has no config.yaml. Name a run of this project")
    return spec


def row_length(checkpoint: Path) -> int:
    """Of the rows that the model was trained on, or, where nothing says so, the most that it was made for. Counts of n-grams look
    back a few tokens only, however long the rows were that they were made from."""
    data = None if is_published(checkpoint) else saved_spec(checkpoint, DataSpec, "data")
    spec = model_spec(checkpoint)
    return spec.max_positions if data is None or spec.graph == "counts" else min(spec.max_positions, data.seq_len)


def opened(checkpoint: Path, objective: Objective | None = None) -> Skeleton:
    model = model_spec(checkpoint).build()
    part = trained_part(checkpoint)
    if part is not None and not part.peft.merges:
        part.peft.apply(model)
    if objective is not None:
        objective.equip(model)
    fill(model, checkpoint)
    return model.eval()


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a text."""

    text: int
    tokens: list[int]
    labels: list[int]


class Likelihood:
    """A language model."""

    def __init__(self, checkpoint: Path) -> None:
        spec = model_spec(checkpoint)
        objective = objective_of(checkpoint, spec).build().plain()
        if not objective.likelihood:
            name = type(objective).__name__.removesuffix("Objective").lower()
            raise UserError(
                f"{checkpoint} was trained on {name}, which gives texts no likelihood: name a model that goes on with a text"
            )
        self.objective, self.model = objective, opened(checkpoint, objective)
        self.tokenizer, self.row_length = load_tokenizer(checkpoint, spec.vocab_size), row_length(checkpoint)

    @torch.no_grad()
    def measure(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """Of each text -log p in nats, its end among it, and the number of tokens."""
        nats, counts = [0.0] * len(texts), [0] * len(texts)
        ids = self.tokenizer.encode_batch([encodable(text) for text in texts])
        lines = [line for number, its in enumerate(ids) for line in self._lines(number, its)]
        for width, some in batches(lines, [len(line.tokens) for line in lines], self.row_length):
            for line, found in zip(some, self._nats(some, width), strict=True):
                nats[line.text] += found
                counts[line.text] += sum(label != IGNORE for label in line.labels)
        return list(zip(nats, counts, strict=True))

    def _lines(self, number: int, ids: Sequence[int]) -> Iterator[Line]:
        begin = list(self.tokenizer.usage.begin_ids) or [self.tokenizer.end_id]
        stream = [*begin, *ids, self.tokenizer.end_id]
        labels = [*[IGNORE] * (len(begin) - 1), *stream[len(begin) :]]
        for start in range(0, len(labels), self.row_length):
            part = slice(start, min(start + self.row_length, len(labels)))
            yield Line(number, stream[part], labels[part])

    def _nats(self, lines: Sequence[Line], width: int) -> list[float]:
        shape = (len(lines), width)
        tokens, labels = np.full(shape, self.tokenizer.end_id, np.int64), np.full(shape, IGNORE, np.int64)
        positions, segments = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, line in enumerate(lines):
            size = len(line.tokens)
            tokens[row, :size], labels[row, :size] = line.tokens, line.labels
            positions[row, :size], segments[row, :size] = np.arange(size), 1
        fields = {"tokens": tokens, "labels": labels, "positions": positions, "segments": segments}
        batch = {name: torch.from_numpy(field) for name, field in fields.items()}
        # Padding stands on the right, where what goes on with a text does not see it.
        outputs = self.objective.outputs(self.model, batch, self.model.context(batch, isolated=False))
        return [
            outputs.head.cross_entropy(outputs.hidden[row, : len(line.tokens)], batch["labels"][row, : len(line.tokens)]).item()
            for row, line in enumerate(lines)
        ]


class Classes:
    """A classifier of single texts."""

    def __init__(self, checkpoint: Path) -> None:
        data = None if is_published(checkpoint) else saved_spec(checkpoint, DataSpec, "data")
        task = data.task if isinstance(data, Labelled) else None
        labels = None if is_published(checkpoint) else saved_labels(checkpoint / FOLDER)
        if not isinstance(task, Classify) or not labels:
            raise UserError(f"{checkpoint} is no classifier: train one with stage=finetune data=examples data/task=classify")
        if task.pair is not None:
            raise UserError(f"{checkpoint} classifies pairs of texts (data.task.pair={task.pair}), documents are single ones")
        spec = model_spec(checkpoint)
        self.labels, self.model = labels, opened(checkpoint)
        self.tokenizer, self.row_length = load_tokenizer(checkpoint, spec.vocab_size), row_length(checkpoint)

    @torch.no_grad()
    def probabilities(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Of each text that of every class, from as much of its beginning as fits a row."""
        rows = [Row(number, fields_of(self._tokens(text), [0])) for number, text in enumerate(texts)]
        found: dict[int, dict[str, float]] = {}
        for width, some in batches(rows, [len(row.fields["tokens"]) for row in rows], self.row_length):
            batch = ExampleRows(some, width, self.tokenizer.end_id).read(np.arange(len(some)))
            hidden = self.model(batch["tokens"], self.model.context(batch))
            logits = self.model.head(self.model.head.pool(hidden, batch["segments"], 1))[:, 0, : len(self.labels)]
            for row, shares in zip(some, logits.double().softmax(-1).tolist(), strict=True):
                found[row.example] = dict(zip(self.labels, shares, strict=True))
        return [found[number] for number in range(len(texts))]

    def _tokens(self, text: str) -> list[int]:
        # However long a text is, only its beginning is read: tokens of more than 64 characters do not fill a row.
        tokens, _ = marked([encodable(text[: 64 * self.row_length])], self.tokenizer, self.row_length)
        return tokens


def batches(rows: Sequence[T], sizes: Sequence[int], widest: int, at_once: int = AT_ONCE) -> Iterator[tuple[int, list[T]]]:
    """(width, rows that are padded to it): a power of two, so that few shapes come up; in an order that follows from the sizes."""
    by_width: dict[int, list[T]] = {}
    for row, size in zip(rows, sizes, strict=True):
        width = min(widest, max(NARROWEST, 1 << (size - 1).bit_length()))
        by_width.setdefault(width, []).append(row)
    for width, some in sorted(by_width.items()):
        count = max(1, at_once // width)
        yield from ((width, some[start : start + count]) for start in range(0, len(some), count))


def encodable(text: str) -> str:
    """Halves of surrogate pairs, which no tokenizer can read, become question marks."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


@cache
def likelihood_of(checkpoint: Path) -> Likelihood:
    return Likelihood(checkpoint)


@cache
def classifier_of(checkpoint: Path) -> Classes:
    return Classes(checkpoint)
