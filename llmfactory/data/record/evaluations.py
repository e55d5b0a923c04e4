"""Formats of questions that models are measured on."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any

from llmfactory.data.record.record import BadRow, Format, Kind, Record, Row, text_of


def _choice(row: Row, question: str, choices: Sequence[Any], right: Any) -> list[Record]:
    """`right`: a number from 0, or a letter."""
    texts = [text_of({"choice": one}, "choice") for one in choices]
    if isinstance(right, str) and len(right.strip()) == 1 and right.strip().upper() in string.ascii_uppercase:
        right = string.ascii_uppercase.index(right.strip().upper())
    elif isinstance(right, str) and right.strip().isdigit():
        right = int(right)
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(texts):
        raise BadRow("a right answer that is none of the choices", f"{right!r} of {len(texts)}")
    return [{"question": text_of(row, question), "choices": texts, "answer": right}]


def _listed(question: str, choices: str, right: str) -> Any:
    return lambda row: _choice(row, question, row[choices], row[right])


def _labelled(row: Row) -> list[Record]:
    """ARC: choices with their labels."""
    texts, labels = row["choices"].get("text"), row["choices"].get("label")
    if not isinstance(texts, list) or not isinstance(labels, list) or row["answerKey"] not in labels:
        raise BadRow("a right answer that is none of the choices", repr(row["answerKey"]))
    return _choice(row, "question", texts, labels.index(row["answerKey"]))


def _solutions(row: Row) -> list[Record]:
    return _choice(row, "goal", [row["sol1"], row["sol2"]], row["label"])


def _answers(row: Row) -> list[Record]:
    """Free answers; of a solution that ends in `#### 18`, what stands behind the mark."""
    value = row["answer"] if "answer" in row else row["target"]
    values = value if isinstance(value, list) else [value]
    texts = [re.split(r"\n?####\s*", text_of({"answer": one}, "answer"))[-1].strip() for one in values]
    if not texts:
        raise BadRow("a question without an answer")
    return [{"question": text_of(row, "question" if "question" in row else "input"), "answers": texts}]


def _is_list(*fields: str) -> Any:
    return lambda row: all(isinstance(row[field], list) for field in fields)


FORMATS = (
    Format("arc", Kind.item, ("question", "choices", "answerKey"), _labelled, lambda row: isinstance(row["choices"], dict)),
    Format("mmlu", Kind.item, ("question", "choices", "answer"), _listed("question", "choices", "answer"), _is_list("choices")),
    Format("hellaswag", Kind.item, ("context", "endings", "gold"), _listed("context", "endings", "gold"), _is_list("endings")),
    Format("hellaswag_hub", Kind.item, ("ctx", "endings", "label"), _listed("ctx", "endings", "label"), _is_list("endings")),
    Format("piqa", Kind.item, ("goal", "sol1", "sol2", "label"), _solutions),
    Format("question_answers", Kind.item, ("question", "answer"), _answers),
    Format("input_answers", Kind.item, ("input", "target"), _answers),
)
