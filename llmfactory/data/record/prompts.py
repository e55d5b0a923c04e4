"""Formats of prompts whose answers a model writes and graders judge, with what is needed for that: a right answer, tests.

All other fields of a row are kept beside them, under their own names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from llmfactory.data.record.boxed import boxed
from llmfactory.data.record.messages import conversation, in_order, user
from llmfactory.data.record.record import BadRow, Format, Kind, Record, Row, text_of

Messages = list[dict[str, Any]]
MARK = re.compile(r"\n?####\s*")
"""Behind it, solutions of GSM8K give the answer."""


def asked(row: Row, messages: Messages, *told: str, **known: Any) -> list[Record]:
    """`told`: fields of the row that are in the messages; `known`: what else is known, None: it is not."""
    in_order(messages)
    if messages[-1]["role"] not in ("user", "tool"):
        raise BadRow("a prompt that asks nothing", "its last message is the assistant's")
    if any(not isinstance(message["content"], str) for message in messages):
        raise BadRow("pictures in a prompt", "answers are written to texts")
    rest = {name: value for name, value in row.items() if name not in (*told, "system", "tools")}
    return [{"prompt": messages, "record": {**rest, **{name: value for name, value in known.items() if value is not None}}}]


def question(row: Row, field: str, context: str | None = None) -> Messages:
    """The user's message, behind the row's system message where there is one."""
    text, more = text_of(row, field), text_of(row, context, optional=True) if context else ""
    system = text_of(row, "system", optional=True)
    first = [{"role": "system", "content": system}] if system.strip() else []
    return [*first, user(f"{text}\n{more}" if more.strip() else text)]


def _listed(field: str) -> Any:
    """Messages, whose last answer, where they end with one, is the right one."""

    def read(row: Row) -> list[Record]:
        messages = conversation(row, row[field])["messages"]
        given = messages.pop() if messages[-1]["role"] == "assistant" else None
        if not messages:
            raise BadRow("a prompt that asks nothing", "it begins with the assistant")
        answer = None if given is None or row.get("answer") is not None else given["content"]
        return asked(row, messages, field, answer=answer)

    return read


def _worked(row: Row) -> list[Record]:
    """A worked answer that ends in `#### 18`."""
    solution = text_of(row, "answer")
    return asked(row, question(row, "question"), "question", solution=solution, answer=MARK.split(solution)[-1].strip())


def _solved(row: Row) -> list[Record]:
    """A solution in which the answer is boxed."""
    answer = boxed(text_of(row, "solution")) if row.get("answer") is None else row["answer"]
    if answer is None:
        raise BadRow("a solution without its answer", "it has no \\boxed{...}")
    return asked(row, question(row, "problem"), "problem", answer=answer)


def _function(row: Row) -> list[Record]:
    """HumanEval: the beginning of a function, and a text that defines `check`, which takes it."""
    begin, name = text_of(row, "prompt"), text_of(row, "entry_point")
    tests = [f"{text_of(row, 'test')}\n\ncheck({name})"]
    return asked(row, question(row, "prompt"), "prompt", "test", tests=tests, begin=begin, solution=row.get("canonical_solution"))


def _task(field: str) -> Any:
    """MBPP: a task in words, and lines that assert."""

    def read(row: Row) -> list[Record]:
        tests = row["test_list"]
        if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
            raise BadRow("tests that are no texts", f"{str(tests)[:100]}")
        imports = row.get("test_imports") or []
        setup = "\n".join([row.get("test_setup_code") or "", *imports]).strip()
        messages = question(row, field)
        messages[-1]["content"] += "\nYour code should pass these tests:\n\n" + "\n".join(tests)
        kept = {name: value for name, value in row.items() if name not in ("test_list", "test_setup_code", "test_imports")}
        return asked(kept, messages, field, "code", tests=tests, setup=setup, solution=row.get("code"))

    return read


def _between(field: str, answer: str | None, context: str | None = None) -> Any:
    def read(row: Row) -> list[Record]:
        told = [name for name in (field, context, answer) if name is not None]
        right = None if answer is None else row[answer]
        return asked(row, question(row, field, context), *told, answer=right)

    return read


def _is(kind: type, *fields: str) -> Any:
    return lambda row: all(isinstance(row[field], kind) for field in fields)


def _marked(row: Row) -> bool:
    return isinstance(row["answer"], str) and "####" in row["answer"]


def _pairs(names: Sequence[tuple[str, str]]) -> list[Format]:
    return [
        Format(f"{one}_{other}_prompt", Kind.prompt, (one, other), _between(one, other), _is(str, one)) for one, other in names
    ]


ALPACA = _between("instruction", "output", "input")

FORMATS = (
    Format("human_eval", Kind.prompt, ("prompt", "test", "entry_point"), _function, _is(str, "prompt", "test")),
    Format("mbpp", Kind.prompt, ("text", "test_list"), _task("text"), _is(str, "text")),
    Format("mbpp_sanitized", Kind.prompt, ("prompt", "test_list"), _task("prompt"), _is(str, "prompt")),
    Format("gsm8k", Kind.prompt, ("question", "answer"), _worked, _marked),
    Format("math", Kind.prompt, ("problem", "solution"), _solved, _is(str, "problem", "solution")),
    Format("prompt_messages", Kind.prompt, ("prompt",), _listed("prompt"), _is(list, "prompt")),
    Format("messages_prompt", Kind.prompt, ("messages",), _listed("messages"), _is(list, "messages")),
    *_pairs([("prompt", "answer"), ("question", "answer"), ("problem", "answer"), ("question", "answers"), ("input", "target")]),
    Format("alpaca_prompt", Kind.prompt, ("instruction", "output"), ALPACA, _is(str, "instruction")),
    *(
        Format(f"{one}_alone", Kind.prompt, (one,), _between(one, None), _is(str, one))
        for one in ("prompt", "question", "problem")
    ),
)
