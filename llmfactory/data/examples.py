"""Labelled examples from JSON lines: read, checked, split, numbered, tokenized. They are few beside running text, and stay in memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.data.source.account import Account, insist_on_share
from llmfactory.data.source.digest import digests
from llmfactory.data.source.paths import resolve
from llmfactory.data.source.streams import lines, opened
from llmfactory.data.spec import Labelled
from llmfactory.data.task.task import BadRecord, ExampleRows, Record, Row, Task
from llmfactory.data.tokenizer.tokenizer import Tokenizer

LABELS = "labels.json"
"""Names of the classes, by number, beside a checkpoint's tokenizer."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Both parts, as rows and as records."""

    task: Task
    tokenizer: Tokenizer
    name: str
    """Hash of everything that the rows depend on."""
    records: dict[str, list[Record]]
    """Of `train` and `held_out`."""
    rows: dict[str, list[Row]]
    counts: dict[str, Any]
    """Examples and tokens of both parts, and what was left out, by reason, with samples."""

    def of(self, part: str, seq_len: int) -> ExampleRows:
        return ExampleRows(self.rows[part], seq_len, self.tokenizer.end_id)

    def save(self, folder: Path) -> None:
        """Tokenizer and class names, as a checkpoint keeps them."""
        self.tokenizer.save(folder)
        if self.task.labels:
            (folder / LABELS).write_text(json.dumps(self.task.labels, ensure_ascii=False) + "\n", encoding="utf-8")


def read_examples(spec: Labelled, vocab_size: int, labels: Sequence[str] | None = None) -> Examples:
    """`labels`: the classes that a model was trained with, by number; None: those of the examples, in alphabetical order.

    Raises UserError: a file that is missing, a record that is none, nothing to train on.
    """
    task, account = spec.task.build(), Account(spec.bad_share, "data.bad_share")
    parts = {"train": list(_records(spec, spec.files, task, account))}
    if spec.held_out_files:
        parts["held_out"] = list(_records(spec, spec.held_out_files, task, account))
    else:
        parts = _split(parts["train"], spec.held_out)
    if not parts["train"]:
        raise UserError(f"data.files={spec.files} hold no example to train on")
    found = {name for part in parts.values() for record in part for name in task.classes(record)}
    task.labels = sorted(found) if labels is None else list(labels)
    texts = [text for record in parts["train"] for text in task.texts(record)]
    tokenizer = spec.tokenizer.build(vocab_size).make(texts)
    try:
        rows = {
            name: [row for number, record in enumerate(part) for row in task.rows(number, record, tokenizer, spec.seq_len)]
            for name, part in parts.items()
        }
    except BadRecord as error:
        raise UserError(f"data.files: {error}") from error
    counts: dict[str, Any] = {
        name: {"examples": len(part), "rows": len(rows[name]), "tokens": sum(len(row.fields["tokens"]) for row in rows[name])}
        for name, part in parts.items()
    }
    counts["dropped"] = account.drops.plain()
    told = sha256(tokenizer_words(tokenizer).encode()).hexdigest()
    files = resolve([*spec.files, *spec.held_out_files], SUFFIXES)
    parts_of_name = [repr(spec.task), spec.held_out, spec.seq_len, task.labels, told, *(it.content for it in digests(files))]
    name = sha256(repr(parts_of_name).encode()).hexdigest()[:24]
    return Examples(task, tokenizer, name, parts, rows, counts)


def saved_labels(folder: Path) -> list[str] | None:
    """Class names that `Examples.save` left; None: the model was trained without."""
    if not (folder / LABELS).is_file():
        return None
    try:
        labels = json.loads((folder / LABELS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / LABELS} is damaged: {error}") from error
    return [str(label) for label in labels]


SUFFIXES = (".jsonl", ".ndjson", ".json")


def _records(spec: Labelled, names: Sequence[str], task: Task, account: Account) -> Iterator[Record]:
    good, before = 0, len(account.bads)
    for path in resolve(names, SUFFIXES):
        with opened(path) as file:
            for number, raw, _ in lines(file, sys.maxsize - 1):
                if not raw.strip():
                    continue
                try:
                    record = json.loads(raw.decode())
                    if not isinstance(record, dict):
                        raise BadRecord(f"a {type(record).__name__} where an object is expected")
                    task.check(record)
                except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
                    account.bad(f"{path}, line {number}", "invalid JSON", str(error), len(raw), raw)
                except BadRecord as error:
                    account.bad(f"{path}, line {number}", "bad example", str(error), len(raw), raw)
                else:
                    good += 1
                    yield record
    if bads := account.bads[before:]:
        first = f"{bads[0].where}: {bads[0].reason}: {bads[0].detail}"
        insist_on_share(len(bads), good + len(bads), account.allowed, first, account.key)


def _split(records: Sequence[Record], share: float) -> dict[str, list[Record]]:
    """By a hash of the record, so that copies stand on one side and adding examples moves none."""
    parts: dict[str, list[Record]] = {"train": [], "held_out": []}
    for record in records:
        text = json.dumps(record, sort_keys=True, ensure_ascii=False)
        place = int.from_bytes(sha256(text.encode(errors="surrogatepass")).digest()[:7], "big") / 256**7
        parts["held_out" if place < share else "train"].append(record)
    return parts


def tokenizer_words(tokenizer: Tokenizer) -> str:
    """Something that differs where two tokenizers would read a text differently."""
    probe = "The quick brown fox, 123 jumps\nover\tthe lazy dög. 日本語 {}[]"
    return f"{tokenizer.vocab_size} {tokenizer.end_id} {tokenizer.encode(probe)}"
