"""Small rows of each published schema (conversations, preferences, evaluations), and what they are read as."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from llmfactory.data.record.formats import FORMATS, NAMES, dumped, format_of, parsed, read, renamed
from llmfactory.data.record.messages import in_order
from llmfactory.data.record.record import BadRow, Kind


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "s"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
QA = [user("q"), said("a")]
REPLIES = [
    {"role": "assistant", "text": "bad", "rank": 1, "replies": []},
    {"role": "assistant", "text": "good", "rank": 0, "replies": [{"role": "prompter", "text": "q2", "replies": []}]},
    {"role": "assistant", "text": "gone", "rank": 2, "deleted": True, "replies": []},
    {"role": "assistant", "text": "spam", "review_result": False, "replies": []},
]
LONG = {"role": "prompter", "text": "q2", "replies": [said("x"), said("y")]}
LONG["replies"] = [{"role": "assistant", "text": "x", "replies": []}, {"role": "assistant", "text": "y", "replies": []}]
READ: dict[str, tuple[Kind, dict[str, Any], list[dict[str, Any]]]] = {
    "openai": (
        Kind.conversation,
        {
            "messages": [
                SYSTEM,
                user("q"),
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "1"},
                said("a", weight=0),
            ],
            "tools": [TOOL],
        },
        [
            {
                "messages": [
                    SYSTEM,
                    user("q"),
                    said("", tool_calls=[CALL]),
                    {"role": "tool", "content": "1"},
                    said("a", weight=0),
                ],
                "tools": [TOOL],
            }
        ],
    ),
    "sharegpt": (
        Kind.conversation,
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": json.dumps({"name": "f", "arguments": {"a": 1}})},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "a"},
            ],
            "system": "s",
            "tools": json.dumps([{"name": "f", "parameters": {}}]),
        },
        [
            {
                "messages": [SYSTEM, user("q"), said("", tool_calls=[CALL]), {"role": "tool", "content": "1"}, said("a")],
                "tools": [TOOL],
            }
        ],
    ),
    "conversation": (
        Kind.conversation,
        {"conversation": [{"role": "human", "text": "q"}, {"role": "bot", "text": "a"}]},
        [{"messages": QA}],
    ),
    "oasst_tree": (
        Kind.conversation,
        {
            "message_tree_id": "1",
            "prompt": {"role": "prompter", "text": "q", "replies": [*REPLIES[:1], {**REPLIES[1], "replies": [LONG]}]},
        },
        [
            {"messages": [user("q"), said("bad")]},
            {"messages": [user("q"), said("good"), user("q2"), said("x")]},
            {"messages": [user("q"), said("good", weight=0), user("q2"), said("y")]},
        ],
    ),
    "self_instruct": (
        Kind.conversation,
        {"instruction": "q", "instances": [{"input": "i", "output": "a"}, {"input": "", "output": "b"}]},
        [{"messages": [user("q\ni"), said("a")]}, {"messages": [user("q"), said("b")]}],
    ),
    "alpaca": (
        Kind.conversation,
        {"instruction": "q", "input": "i", "output": "a", "history": [["h", "b"]], "system": "s"},
        [{"messages": [SYSTEM, user("h"), said("b"), user("q\ni"), said("a")]}],
    ),
    "dolly": (
        Kind.conversation,
        {"instruction": "q", "context": "c", "response": "a", "category": "open_qa"},
        [{"messages": [user("q\nc"), said("a")]}],
    ),
    "prompt_response": (Kind.conversation, {"prompt": "q", "response": "a"}, [{"messages": QA}]),
    "prompt_completion": (Kind.conversation, {"prompt": "q", "completion": "a"}, [{"messages": QA}]),
    "query_response": (Kind.conversation, {"query": "q", "response": "a"}, [{"messages": QA}]),
    "input_target": (Kind.conversation, {"input": "q", "target": "a"}, [{"messages": QA}]),
    "question_answer": (
        Kind.conversation,
        {"question": "q", "answer": "a\n#### 3"},
        [{"messages": [user("q"), said("a\n#### 3")]}],
    ),
    "caption": (
        Kind.conversation,
        {"image": "images/0.jpg", "caption": "a"},
        [{"messages": [{"role": "user", "content": [{"type": "image"}]}, said("a")], "images": ["images/0.jpg"]}],
    ),
    "hh_rlhf": (
        Kind.pair,
        {
            "chosen": "\n\nHuman: q\n\nAssistant: h\n\nHuman: q2\n\nAssistant: a",
            "rejected": "\n\nHuman: q\n\nAssistant: h\n\nHuman: q2\n\nAssistant: b",
        },
        [{"prompt": [user("q"), said("h"), user("q2")], "chosen": [said("a")], "rejected": [said("b")]}],
    ),
    "message_pair": (
        Kind.pair,
        {"prompt": "q", "chosen": QA, "rejected": [user("q"), said("b")], "score_chosen": 8.5, "score_rejected": 6},
        [{"prompt": [user("q")], "chosen": [said("a")], "rejected": [said("b")], "margin": 2.5}],
    ),
    "messages_pair": (
        Kind.pair,
        {
            "chosen_messages": [
                {"role": "user", "content": [{"type": "text", "value": "q"}], "loss_weight": 0.0},
                said("a", loss_weight=1.0),
            ],
            "rejected_messages": [
                {"role": "user", "content": [{"type": "text", "value": "q"}], "loss_weight": 0.0},
                said("b", loss_weight=1.0),
            ],
        },
        [{"prompt": [user("q")], "chosen": [said("a", weight=1)], "rejected": [said("b", weight=1)]}],
    ),
    "sharegpt_pair": (
        Kind.pair,
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        [{"prompt": [user("q")], "chosen": [said("a")], "rejected": [said("b")]}],
    ),
    "text_pair": (
        Kind.pair,
        {"instruction": "q", "input": "i", "output": "a", "chosen": "a", "rejected": "b", "system": "s"},
        [{"prompt": [SYSTEM, user("q\ni")], "chosen": [said("a")], "rejected": [said("b")]}],
    ),
    "comparison": (
        Kind.pair,
        {"info": {"post": "long ", "title": "t"}, "summaries": [{"text": " b"}, {"text": " a"}], "choice": 1},
        [{"prompt": [user("t\n\nlong\n\nTL;DR:")], "chosen": [said("a")], "rejected": [said("b")]}],
    ),
    "judged": (
        Kind.judged,
        {"prompt": "q", "completion": "a", "label": False},
        [{"prompt": [user("q")], "answer": [said("a")], "label": False}],
    ),
    "completions": (
        Kind.ranking,
        {"instruction": "q", "completions": [{"response": "b", "overall_score": 3.0}, {"response": "a", "overall_score": 7.5}]},
        [{"prompt": [user("q")], "answers": [[said("a")], [said("b")]], "scores": [7.5, 3.0]}],
    ),
    "responses": (
        Kind.ranking,
        {"prompt": "q", "responses": ["b", "c", "a"], "ranks": [2, 3, 1]},
        [{"prompt": [user("q")], "answers": [[said("a")], [said("b")], [said("c")]]}],
    ),
    "answers": (
        Kind.ranking,
        {"question": "q", "answers": ["b", "a"], "scores": [1, 2]},
        [{"prompt": [user("q")], "answers": [[said("a")], [said("b")]], "scores": [2.0, 1.0]}],
    ),
    "ranked_tree": (
        Kind.ranking,
        {"prompt": {"role": "prompter", "text": "q", "replies": REPLIES}},
        [{"prompt": [user("q")], "answers": [[said("good")], [said("bad")]]}],
    ),
    "steps": (
        Kind.scored,
        {"question": "q", "steps": ["one", "two"], "labels": [True, False]},
        [{"prompt": [user("q")], "steps": ["one", "two"], "scores": [1.0, 0.0]}],
    ),
    "scored": (
        Kind.scored,
        {"prompt": "q", "response": "a", "score": 3},
        [{"prompt": [user("q")], "answer": [said("a")], "score": 3.0}],
    ),
    "arc": (
        Kind.item,
        {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
        [{"question": "q", "choices": ["x", "y"], "answer": 1}],
    ),
    "mmlu": (
        Kind.item,
        {"question": "q", "choices": ["x", "y"], "answer": "B"},
        [{"question": "q", "choices": ["x", "y"], "answer": 1}],
    ),
    "hellaswag": (
        Kind.item,
        {"context": "q", "endings": ["x", "y"], "gold": 1},
        [{"question": "q", "choices": ["x", "y"], "answer": 1}],
    ),
    "hellaswag_hub": (
        Kind.item,
        {"ctx": "q", "endings": ["x", "y"], "label": "1"},
        [{"question": "q", "choices": ["x", "y"], "answer": 1}],
    ),
    "piqa": (
        Kind.item,
        {"goal": "q", "sol1": "x", "sol2": "y", "label": 0},
        [{"question": "q", "choices": ["x", "y"], "answer": 0}],
    ),
    "question_answers": (Kind.item, {"question": "q", "answer": ["a", "b"]}, [{"question": "q", "answers": ["a", "b"]}]),
    "input_answers": (Kind.item, {"input": "q", "target": "a"}, [{"question": "q", "answers": ["a"]}]),
}
"""format -> (kind, a row of it, what it is read as)"""


@pytest.mark.parametrize("name", [one.name for one in FORMATS if one.name != "oasst_flat" and one.kind is not Kind.prompt])
def test_a_row_is_told_and_read(name: str) -> None:
    kind, row, expected = READ[name]
    found = format_of(row, [kind])
    assert found is not None
    assert found.name == name
    assert read(parsed(json.dumps(row)), kind) == (name, expected)
    assert read(row, kind, name) == (name, expected), "also where it is asked for by name"


def test_every_format_is_here() -> None:
    """Those of prompts stand in tests/data/form/test_prompts.py."""
    assert {*READ, "oasst_flat"} == {one.name for one in FORMATS if one.kind is not Kind.prompt}
    assert len(set(NAMES)) == len(FORMATS)


def test_without_a_kind_the_format_that_asks_most_is_told() -> None:
    """Of whichever kind; what two kinds read alike is told as the first."""
    found = {name: format_of(row) for name, (_, row, _) in READ.items()}
    others = {name: one.name for name, one in found.items() if one is not None and one.name != name}
    assert others == {"oasst_tree": "ranked_tree", "input_answers": "input_target"}


def test_the_answer_of_a_solution_is_what_stands_behind_its_mark() -> None:
    row = {"question": "q", "answer": "so 2 + 1\n#### 3"}
    assert read(row, Kind.item) == ("question_answers", [{"question": "q", "answers": ["3"]}])


BAD: list[tuple[Kind, dict[str, Any], str]] = [
    (Kind.conversation, {"messages": [said("a"), user("q")]}, r"wrong order of roles: message 1 \(assistant\) follows nothing"),
    (
        Kind.conversation,
        {"messages": [user("q"), user("q"), said("a")]},
        r"wrong order of roles: message 2 \(user\) follows user",
    ),
    (Kind.conversation, {"messages": [user("q"), SYSTEM, said("a")]}, r"wrong order of roles: message 2 \(system\)"),
    (Kind.conversation, {"messages": [user("q"), said("b"), {"role": "tool", "content": "1"}]}, "a call that nobody made"),
    (Kind.conversation, {"messages": [user("q"), said(" \n")]}, r"an empty message: message 2 \(assistant\)"),
    (Kind.conversation, {"messages": [user(""), said("a")]}, r"an empty message: message 1 \(user\)"),
    (Kind.conversation, {"messages": [{"role": "king", "content": "q"}]}, "an unknown role: 'king'"),
    (Kind.conversation, {"messages": [{"content": "q"}]}, "an unknown role: None"),
    (Kind.conversation, {"messages": [{"role": "user"}]}, "a message without content"),
    (Kind.conversation, {"messages": ["q"]}, "a message that is no object"),
    (Kind.conversation, {"messages": "q"}, "messages that are no list"),
    (Kind.conversation, {"messages": [user(3)]}, "content that is no text: it is of type int"),  # type: ignore[arg-type]
    (Kind.conversation, {"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "a part of the type 'audio'"),
    (Kind.conversation, {"messages": [user("q"), said("a", weight=0.5)]}, "a weight that is neither 0 nor 1: 0.5"),
    (Kind.conversation, {"messages": [user("q"), said("", tool_calls=[{"function": {}}])]}, "a tool call that is none"),
    (
        Kind.conversation,
        {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{"}]},
        "is no JSON",
    ),
    (Kind.conversation, {"messages": QA, "tools": "x"}, "a tool call that is none: the field tools is no JSON"),
    (Kind.conversation, {"messages": QA, "tools": [3]}, "tools that are none"),
    (Kind.conversation, {"messages": [user("<image> a <image>"), said("a")], "images": ["x.png"]}, "1 pictures, 2 places"),
    (Kind.conversation, {"messages": QA, "image": "x.png"}, "1 pictures, 0 places"),
    (Kind.conversation, {"messages": QA, "images": [3]}, "pictures that are no paths"),
    (Kind.conversation, {"instruction": "q", "output": ""}, "empty text: the field 'output'"),
    (Kind.conversation, {"instruction": "q", "output": ["a"]}, "content that is no text: the field 'output' is of type list"),
    (Kind.conversation, {"instruction": "q", "output": "a", "history": [["b"]]}, "history that is none"),
    (Kind.conversation, {"instruction": "q", "instances": ["a"]}, "instances that are no list of objects"),
    (
        Kind.conversation,
        {"message_id": "1", "parent_id": "0", "role": "assistant", "text": "a"},
        "a message of a tree, alone: .*whole trees",
    ),
    (Kind.conversation, {"prompt": {"role": "prompter", "text": "q", "replies": []}}, "a tree without an answer"),
    (Kind.conversation, {"prompt": {"role": "prompter", "replies": []}}, "a tree that is damaged"),
    (Kind.conversation, {"a": 1}, r"no known format: fields \['a'\]"),
    (
        Kind.conversation,
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        r"not a conversation: it looks like a pair .*\(text_pair\)",
    ),
    (Kind.pair, {"messages": QA}, r"not a pair of a chosen and a rejected answer: it looks like a conversation \(openai\)"),
    (
        Kind.pair,
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: r\n\nAssistant: a"},
        "sides without a common prompt",
    ),
    (Kind.pair, {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant:"}, "an empty message"),
    (
        Kind.pair,
        {"chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        "the chosen side does not end",
    ),
    (Kind.pair, {"chosen": "a", "rejected": "b"}, "no prompt"),
    (Kind.pair, {"prompt": "q", "chosen": "a", "rejected": ""}, "empty text: the field 'rejected'"),
    (Kind.pair, {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "x"}, "a score that is no number: margin is 'x'"),
    (Kind.pair, {"info": {"post": "p"}, "summaries": [{"text": "a"}], "choice": 0}, "a comparison that is none"),
    (Kind.judged, {"prompt": "q", "completion": "a", "label": 1}, "a label that is neither true nor false: 1"),
    (Kind.judged, {"messages": [user("q")], "label": True}, "no answer"),
    (Kind.judged, {"prompt": "q", "completion": "a"}, "not an answer with a label"),
    (Kind.ranking, {"prompt": "q", "responses": ["a"]}, "a ranking of less than two answers"),
    (Kind.ranking, {"prompt": "q", "responses": ["a", "b"], "scores": [1]}, "scores that are too few or too many: 1 for 2"),
    (Kind.ranking, {"prompt": "q", "responses": ["a", "b"], "scores": [1, None]}, "a score that is no number"),
    (Kind.ranking, {"prompt": {"role": "prompter", "text": "q", "replies": []}}, "a tree without ranked answers"),
    (Kind.scored, {"prompt": "q", "response": "a", "score": float("nan")}, "a score that is no number"),
    (Kind.scored, {"prompt": "q", "steps": ["a"], "scores": [1, 2]}, "steps without a score each"),
    (Kind.item, {"question": "q", "choices": ["x"], "answer": "B"}, "a right answer that is none of the choices: 1 of 1"),
    (Kind.item, {"question": "q", "choices": ["x"], "answer": True}, "a right answer that is none of the choices"),
    (Kind.item, {"question": "q", "choices": {"text": ["x"], "label": ["A"]}, "answerKey": "B"}, "none of the choices: 'B'"),
    (Kind.item, {"question": "q", "answer": []}, "a question without an answer"),
]


@pytest.mark.parametrize(("kind", "row", "said"), BAD)
def test_a_bad_row_says_why(kind: Kind, row: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRow, match=said):
        read(row, kind)


JUNK: list[Any] = [
    None,
    "",
    " ",
    "x",
    "Human: x",
    0,
    -1,
    2.5,
    float("inf"),
    True,
    [],
    {},
    [[]],
    [{}],
    [None],
    {"a": {}},
    ["x"],
    "{",
    "[1]",
]


def spoiled(value: Any, dice: random.Random) -> Any:
    """The value with one thing in it, somewhere, that does not belong there."""
    if dice.random() < 0.3 or not isinstance(value, (dict, list)) or not value:
        return dice.choice(JUNK)
    if isinstance(value, list):
        place = dice.randrange(len(value))
        return [*value[:place], spoiled(value[place], dice), *value[place + 1 :]]
    name = dice.choice(sorted(value))
    if dice.random() < 0.2:
        return {key: one for key, one in value.items() if key != name}
    return {**value, name: spoiled(value[name], dice)}


@pytest.mark.parametrize("name", sorted(READ))
def test_whatever_stands_in_a_row_it_is_read_or_bad(name: str) -> None:
    """And what is read, is what its form asks for: a list of records with messages in order."""
    dice = random.Random(name)
    kind, row, expected = READ[name]
    for _ in range(500):
        wrong = spoiled(row, dice)
        if dice.random() < 0.3 and isinstance(wrong, dict):
            wrong = spoiled(wrong, dice)
        if not isinstance(wrong, dict):
            continue
        try:
            _, records = read(wrong, kind)
            assert json.loads(dumped(records)) == records
        except BadRow:
            continue
        for record in records:
            assert {*record} <= {
                *expected[0],
                "images",
                "tools",
                "scores",
                "margin",
                "answer",
                "score",
                "steps",
                "choices",
                "answers",
            }
            for messages in (record.get("messages"), record.get("prompt")):
                if messages is not None:
                    in_order(messages)


def test_json_that_is_none() -> None:
    for text, why in (("{", "invalid JSON"), ("[1]", "no object: a list"), ("[" * 100_000, "invalid JSON"), ("", "invalid JSON")):
        with pytest.raises(BadRow, match=why):
            parsed(text)
    with pytest.raises(BadRow, match="half of a surrogate pair"):
        dumped(read(parsed('{"prompt": "q", "response": "\\ud800"}'), Kind.conversation))


def test_fields_by_the_names_of_the_file() -> None:
    row = renamed({"frage": "q", "antwort": "a", "x": 1}, {"prompt": "frage", "response": "antwort"})
    assert row == {"x": 1, "prompt": "q", "response": "a"}
    assert read(row, Kind.conversation) == ("prompt_response", [{"messages": QA}])
    with pytest.raises(BadRow, match=r"a field is missing: antwort among \['frage'\]"):
        renamed({"frage": "q"}, {"prompt": "frage", "response": "antwort"})


def test_a_format_that_is_asked_for_must_be_there() -> None:
    row = {"instruction": "q", "output": "a", "messages": QA}
    assert read(row, Kind.conversation)[0] == "openai"
    assert read(row, Kind.conversation, "alpaca")[0] == "alpaca"
    with pytest.raises(BadRow, match="dolly needs response beside"):
        read(row, Kind.conversation, "dolly")


def test_pictures_take_their_places() -> None:
    row = {"messages": [user("a<image>b"), said("<image>c")], "images": ["x.png", "y.png"]}
    ((record,),) = read(row, Kind.conversation)[1:]
    first, second = (message["content"] for message in record["messages"])
    assert first == [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    assert second == [{"type": "image"}, {"type": "text", "text": "c"}]
    row = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x.png"}}]}, said("a")]}
    ((record,),) = read(row, Kind.conversation)[1:]
    assert record["images"] == ["x.png"]
    assert read({"messages": [user("what is <image>?"), said("a")]}, Kind.conversation)[1] == [
        {"messages": [user("what is <image>?"), said("a")]}
    ], "a word, where there is no picture"


def test_pairs_of_conversations_that_part_early() -> None:
    one = [user("q"), said("a"), user("x"), said("b")]
    other = [user("q"), said("c")]
    ((record,),) = read({"chosen": one, "rejected": other}, Kind.pair)[1:]
    assert record == {"prompt": [user("q")], "chosen": one[1:], "rejected": other[1:]}
