"""Messages of all formats, as one: roles, contents, calls of tools, places of pictures; and what a conversation must be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llmfactory.data.record.record import BadRow, Record, Row

Message = dict[str, Any]
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "instruction"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "chatbot", "bing", "bard", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "ipython", "function_response", "tool_response"), "tool"),
}
"""How files name the roles."""
PLACE = "<image>"
"""Stands in a text where a picture is."""
TEXTS = ("text", "input_text", "output_text")
PICTURES = ("image", "image_url", "input_image")


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def with_system(text: str, messages: Sequence[Message]) -> list[Message]:
    """A system message in front, where there is a text for it."""
    return [{"role": "system", "content": text}, *messages] if text.strip() else [*messages]


def message(row: Any, images: list[str]) -> Message:
    """One message; paths of pictures that its parts name go to `images`."""
    if not isinstance(row, dict):
        raise BadRow("a message that is no object", f"it is of type {type(row).__name__}")
    named = next((row[key] for key in ("role", "from", "speaker") if isinstance(row.get(key), str)), None)
    if named is None or named.lower() not in ROLES:
        raise BadRow("an unknown role", f"{named!r} is none of {', '.join(sorted(ROLES))}")
    content = next((row[key] for key in ("content", "value", "text") if row.get(key) is not None), None)
    found: Message = {"role": ROLES[named.lower()], "content": ""}
    if named.lower() == "function_call":
        found["tool_calls"] = calls(content)
        return found
    if row.get("tool_calls"):
        found["tool_calls"] = calls(row["tool_calls"])
    elif isinstance(row.get("function_call"), dict):
        found["tool_calls"] = calls([row["function_call"]])
    elif content is None:
        raise BadRow("a message without content", f"fields {sorted(row)[:10]}")
    found["content"] = _content(content, images)
    weight = next((row[key] for key in ("weight", "loss_weight", "train") if row.get(key) is not None), None)
    if weight is not None:
        if weight not in (0, 1):
            raise BadRow("a weight that is neither 0 nor 1", repr(weight))
        if found["role"] == "assistant":
            found["weight"] = int(weight)
    return found


def _content(content: Any, images: list[str]) -> Any:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRow("content that is no text", f"it is of type {type(content).__name__}")
    parts = [_part(part, images) for part in content]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Any, images: list[str]) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in TEXTS:
        text = next((part[key] for key in ("text", "value", "content") if isinstance(part.get(key), str)), None)
        if text is not None:
            return {"type": "text", "text": text}
    if kind in PICTURES:
        value = next((part[key] for key in ("image_url", "image", "path", "url", "value") if part.get(key) is not None), None)
        path = value.get("url") if isinstance(value, dict) else value
        if isinstance(path, str):
            images.append(path)
        return {"type": "image"}
    raise BadRow("content that is no text", f"a part of the type {kind!r}")


def calls(value: Any) -> list[Row]:
    """Calls of tools: a list or a single one, as objects or as their JSON."""
    value = _parsed(value, "a tool call")
    found = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow("a tool call that is none", f"without a name: {str(call)[:100]}")
        arguments = function.get("arguments", function.get("parameters", {}))
        arguments = _parsed(arguments, "the arguments of a tool call") if isinstance(arguments, str) and arguments else arguments
        found.append({"type": "function", "function": {"name": function["name"], "arguments": arguments or {}}})
    if not found:
        raise BadRow("a tool call that is none", "an empty list")
    return found


def tools(row: Row) -> list[Row]:
    """What may be called, as a list of `{"type": "function", "function": {...}}`."""
    value: Any = next((row[key] for key in ("tools", "functions") if row.get(key)), [])
    value = _parsed(value, "the field tools")
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise BadRow("tools that are none", f"{str(value)[:100]}")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in value]


def _parsed(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRow("a tool call that is none", f"{what} is no JSON: {error}") from error


def conversation(row: Row, rows: Any) -> Record:
    """The messages of a row, with its tools and pictures; its order is checked."""
    if not isinstance(rows, list):
        raise BadRow("messages that are no list", f"they are of type {type(rows).__name__}")
    inside: list[str] = []
    messages = [message(one, inside) for one in rows]
    if isinstance(row.get("system"), str) and (not messages or messages[0]["role"] != "system"):
        messages = with_system(row["system"], messages)
    return checked({"messages": messages, "tools": tools(row), "images": inside or images(row)})


def images(row: Row) -> list[str]:
    value: Any = next((row[key] for key in ("images", "image") if row.get(key)), [])
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise BadRow("pictures that are no paths", f"{str(value)[:100]}")
    return paths


def checked(record: Record) -> Record:
    """A conversation without what is empty, its pictures in their places. Raises BadRow where its order is wrong."""
    in_order(record["messages"])
    paths = record.get("images") or []
    messages = [_with_places(one) if paths else one for one in record["messages"]]
    parts = [part for one in messages if isinstance(one["content"], list) for part in one["content"]]
    places = sum(part["type"] == "image" for part in parts)
    if places != len(paths):
        raise BadRow("pictures without their places", f"{len(paths)} pictures, {places} places ({PLACE})")
    return {key: value for key, value in {**record, "messages": messages}.items() if value}


def _with_places(one: Message) -> Message:
    """A text with placeholders as a list of parts."""
    if not isinstance(one["content"], str) or PLACE not in one["content"]:
        return one
    texts = one["content"].split(PLACE)
    parts: list[dict[str, str]] = []
    for number, text in enumerate(texts):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": text}] if text else []
    return {**one, "content": parts}


BEFORE: dict[str, set[str | None]] = {
    "system": {None},
    "user": {None, "system", "assistant"},
    "assistant": {"user", "tool"},
    "tool": {"assistant", "tool"},
}
"""Which roles may stand before each; None: it is the first."""


def in_order(messages: Sequence[Message]) -> None:
    """Raises BadRow where one follows another that it cannot follow."""
    if not messages:
        raise BadRow("no messages")
    previous: Message | None = None
    for number, one in enumerate(messages, 1):
        last = None if previous is None else previous["role"]
        if last not in BEFORE[one["role"]]:
            raise BadRow("wrong order of roles", f"message {number} ({one['role']}) follows {last or 'nothing'}")
        if one["role"] == "tool" and previous is not None and previous["role"] == "assistant" and "tool_calls" not in previous:
            raise BadRow("wrong order of roles", f"message {number} is the result of a call that nobody made")
        if one["role"] in ("user", "assistant") and not one.get("tool_calls") and not _spoken(one["content"]):
            raise BadRow("an empty message", f"message {number} ({one['role']})")
        previous = one


def _spoken(content: Any) -> bool:
    return bool(content.strip()) if isinstance(content, str) else bool(content)
