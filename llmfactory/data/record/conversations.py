"""Formats of conversations and of single questions with their answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from llmfactory.data.record.messages import PLACE, assistant, checked, conversation, images, tools, user, with_system
from llmfactory.data.record.record import BadRow, Format, Kind, Record, Row, text_of


def exchange(row: Row, question: str, answer: str, context: str | None = None) -> list[Record]:
    """A question, its context where there is one, and the answer."""
    asked, given = text_of(row, question), text_of(row, context, optional=True) if context else ""
    messages = [*history(row), user(f"{asked}\n{given}" if given.strip() else asked), assistant(text_of(row, answer))]
    messages = with_system(text_of(row, "system", optional=True), messages)
    return [checked({"messages": messages, "tools": tools(row), "images": images(row)})]


def history(row: Row) -> Iterator[dict[str, Any]]:
    """Turns before, as pairs of texts."""
    turns = row.get("history") or []
    for turn in turns if isinstance(turns, list) else [turns]:
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise BadRow("history that is none", "its turns are pairs of texts, a question and an answer")
        yield user(turn[0])
        yield assistant(turn[1])


def _alpaca(row: Row) -> list[Record]:
    return exchange(row, "instruction", "output", "input")


def _instances(row: Row) -> list[Record]:
    """Self-instruct and its translations: an instruction with several inputs and outputs."""
    if not isinstance(row["instances"], list) or not all(isinstance(one, dict) for one in row["instances"]):
        raise BadRow("instances that are no list of objects")
    return [record for one in row["instances"] for record in exchange({**row, **one}, "instruction", "output", "input")]


def _between(question: str, answer: str) -> Any:
    return lambda row: exchange(row, question, answer, "context" if question == "instruction" else None)


def _caption(row: Row) -> list[Record]:
    return [checked({"messages": [user(PLACE), assistant(text_of(row, "caption"))], "images": images(row)})]


def _listed(field: str) -> Any:
    return lambda row: [conversation(row, row[field])]


def transcript(text: str) -> list[dict[str, Any]]:
    """`\\n\\nHuman: ...\\n\\nAssistant: ...` (Bai et al. 2022) as messages."""
    pieces = re.split(r"\n\n(Human|Assistant):", text if text.startswith("\n\n") else f"\n\n{text}")
    if pieces[0].strip() or len(pieces) < 3:
        raise BadRow("a transcript that is none", "it does not begin with 'Human:'")
    pairs = zip(pieces[1::2], pieces[2::2], strict=True)
    return [(user if who == "Human" else assistant)(said.strip()) for who, said in pairs]


# OpenAssistant: a tree of messages, each path from the root to a leaf a conversation.


def _tree(row: Row) -> list[Record]:
    found = [{"messages": path} for path in _paths(row["prompt"], [], set())]
    if not found:
        raise BadRow("a tree without an answer")
    return [checked(one) for one in found]


def _paths(node: Any, before: list[dict[str, Any]], seen: set[int]) -> Iterator[list[dict[str, Any]]]:
    """Conversations that end in an answer. An answer that stands in several is learned from once: elsewhere it has weight 0."""
    if not isinstance(node, dict) or not isinstance(node.get("text"), str):
        raise BadRow("a tree that is damaged", "a message without text")
    said = (assistant if node.get("role") == "assistant" else user)(node["text"])
    path = [*before, said]
    longer = False
    for reply in replies(node):
        for found in _paths(reply, path, seen):
            longer = True
            yield found
    if not longer and said["role"] == "assistant":
        yield [_once(one, seen) for one in path]


def replies(node: Row) -> list[Row]:
    """To a message of a tree, without those that were taken back or found to be bad."""
    found = node.get("replies") or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise BadRow("a tree that is damaged", "replies that are no list of messages")
    return [one for one in found if not one.get("deleted") and one.get("review_result") is not False]


def _once(one: dict[str, Any], seen: set[int]) -> dict[str, Any]:
    if one["role"] != "assistant":
        return one
    learned = id(one) in seen
    seen.add(id(one))
    return {**one, "weight": 0} if learned else one


def _lone_message(row: Row) -> list[Record]:
    raise BadRow(
        "a message of a tree, alone",
        "rows with message_id and parent_id are put together elsewhere; files with whole trees (prompt, replies) can be read",
    )


def _of_texts(*fields: str) -> Any:
    return lambda row: all(isinstance(row[field], str) for field in fields)


def _plain_answer(row: Row) -> bool:
    return isinstance(row["answer"], str) and "choices" not in row


FORMATS = (
    Format("openai", Kind.conversation, ("messages",), _listed("messages")),
    Format("sharegpt", Kind.conversation, ("conversations",), _listed("conversations"), lambda row: "chosen" not in row),
    Format("conversation", Kind.conversation, ("conversation",), _listed("conversation")),
    Format("oasst_tree", Kind.conversation, ("prompt",), _tree, lambda row: isinstance(row["prompt"], dict)),
    Format("oasst_flat", Kind.conversation, ("message_id", "role", "text"), _lone_message),
    Format("self_instruct", Kind.conversation, ("instruction", "instances"), _instances),
    Format("alpaca", Kind.conversation, ("instruction", "output"), _alpaca),
    Format("dolly", Kind.conversation, ("instruction", "response"), _between("instruction", "response")),
    Format("prompt_response", Kind.conversation, ("prompt", "response"), _between("prompt", "response")),
    Format(
        "prompt_completion", Kind.conversation, ("prompt", "completion"), _between("prompt", "completion"), _of_texts("prompt")
    ),
    Format("query_response", Kind.conversation, ("query", "response"), _between("query", "response")),
    Format("input_target", Kind.conversation, ("input", "target"), _between("input", "target")),
    Format("question_answer", Kind.conversation, ("question", "answer"), _between("question", "answer"), _plain_answer),
    Format("caption", Kind.conversation, ("image", "caption"), _caption),
)
