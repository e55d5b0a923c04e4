"""Conversations from rows of files to tokens with marks on what is learned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from chat_templates import TOOL_TURNS, TOOLS, source_of, trained

from llmfactory.core.errors import ConfigError
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.step import Drop, Kept
from llmfactory.data.form.chat import ChatForm
from llmfactory.data.form.form import Encoded
from llmfactory.data.form.spec import Chat, TooLong, TrainOn
from llmfactory.data.form.template.spec import Jinja
from llmfactory.data.tokenizer.bytes import ByteTokenizer
from llmfactory.data.tokenizer.tokenizer import Tokenizer

CHATML = Jinja(**dict(zip(("source", "specials"), source_of("chatml"), strict=True)))


def turns(*texts: str, **first: Any) -> dict[str, Any]:
    """A row with questions and answers in turn; `first`: more of the first answer."""
    roles = ("user", "assistant")
    messages: list[dict[str, Any]] = [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]
    messages[1 if len(messages) > 1 else 0].update(first)
    return {"messages": messages}


def kept(form: ChatForm, row: Any) -> str:
    outcome = form.normalize(Page("file.jsonl, line 1", row if isinstance(row, str) else json.dumps(row)))
    assert isinstance(outcome, Kept), outcome
    return outcome.text


def encoded(spec: Chat, *rows: Any, tokenizer: Tokenizer | None = None) -> tuple[Tokenizer, list[list[Encoded]]]:
    form = spec.build()
    assert isinstance(form, ChatForm)
    equipped = form.equip(tokenizer or ByteTokenizer(), 1000)
    return equipped, form.encode(equipped, [kept(form, row) for row in rows])


def learned(tokenizer: Tokenizer, one: Encoded) -> str:
    """The text of the targets; a bar stands where the end behind the sequence is one."""
    assert one.targets is not None
    assert len(one.targets) == len(one.ids) + 1
    ids = [i for i, target in zip(one.ids, one.targets, strict=False) if target]
    return "".join("|" if i == tokenizer.end_id else tokenizer.decode([i]) for i in ids) + ("|" if one.targets[-1] else "")


def whole(tokenizer: Tokenizer, one: Encoded) -> str:
    return "".join("|" if i == tokenizer.end_id else tokenizer.decode([i]) for i in one.ids)


def test_a_row_is_brought_into_one_form_with_the_name_of_its_format() -> None:
    form = Chat().build()
    outcome = form.normalize(Page("x", '{"output": "a", "instruction": "q"}'))
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert outcome == Kept(json.dumps({"records": [{"messages": messages}]}), {}, "alpaca")
    assert list(form.texts(outcome.text)) == ["q", "a"]
    assert form.records


def test_texts_are_all_that_a_tokenizer_may_see() -> None:
    form = Chat().build()
    row = {"messages": TOOL_TURNS, "tools": TOOLS}
    found = list(form.texts(kept(form, row)))  # type: ignore[arg-type]
    assert "Weather?" in found
    assert any('"city": "Rome"' in text for text in found)
    assert any('"description"' in text for text in found)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "invalid JSON"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "wrong order of roles"),
        ({"messages": [{"role": "user", "content": "q"}]}, "no answer"),
        ({"messages": []}, "no messages"),
        (turns("q", "a", weight=0), "nothing to learn"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "not a conversation"),
        ('{"prompt": "q", "response": "\\udc00"}', "invalid utf-8"),
    ],
)
def test_a_row_that_teaches_nothing_is_bad(row: Any, reason: str) -> None:
    outcome = Chat().build().normalize(Page("x", row if isinstance(row, str) else json.dumps(row)))
    assert isinstance(outcome, Drop)
    assert outcome.reason == reason


def test_a_question_at_the_end_is_cut_off_and_counted() -> None:
    form = Chat().build()
    outcome = form.normalize(Page("x", json.dumps({**turns("<image>q", "a", "<image>r"), "images": ["1.png", "2.png"]})))
    assert isinstance(outcome, Kept)
    assert outcome.changes == {"questions at the end without an answer": 1}
    (record,) = json.loads(outcome.text)["records"]
    assert len(record["messages"]) == 2
    assert record["images"] == ["1.png"]


def test_every_answer_and_its_end_is_learned() -> None:
    tokenizer, (((one,)),) = encoded(Chat(), turns("q", "a", "r", "b"))
    assert whole(tokenizer, one) == "|User: q\n\nAssistant: a|\n\nUser: r\n\nAssistant: b"
    assert learned(tokenizer, one) == " a| b|", "the last end is that of the document"


def test_answers_of_weight_0_are_only_read() -> None:
    tokenizer, ((one,),) = encoded(Chat(), turns("q", "a", "r", "b", weight=0))
    assert learned(tokenizer, one) == " b|"
    tokenizer, ((one,),) = encoded(Chat(), turns("q", "a", "r", "b", weight=1))
    assert learned(tokenizer, one) == " a| b|"


def test_what_is_learned_can_be_chosen() -> None:
    row = turns("q", "a", "r", "b", weight=0)
    tokenizer, ((last,),) = encoded(Chat(train_on=TrainOn.last), row)
    assert learned(tokenizer, last) == " b|"
    tokenizer, ((everything,),) = encoded(Chat(train_on=TrainOn.everything), row)
    assert learned(tokenizer, everything) == whole(tokenizer, everything)[1:] + "|", "all but the first"
    assert whole(tokenizer, everything).startswith("|User: q")
    assert whole(tokenizer, everything).endswith("Assistant: b|\n\n")


def test_a_turn_that_ends_with_its_own_token() -> None:
    tokenizer, ((one,),) = encoded(Chat(template=CHATML), turns("q", "a"), tokenizer=trained())
    assert learned(tokenizer, one) == "a<|im_end|>"
    assert whole(tokenizer, one) == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>"


def test_a_begin_token_that_is_the_end_token() -> None:
    """As GPT-2 has it: the template wrote it, so it is read."""
    source = "{{ bos_token }}" + str(CHATML.source)
    spec = Chat(template=Jinja(source=source, specials=CHATML.specials))
    tokenizer, ((one,),) = encoded(spec, turns("q", "a"), tokenizer=trained())
    assert tokenizer.usage.begin_ids == (tokenizer.end_id,)
    assert whole(tokenizer, one).startswith("|<|im_start|>")


def test_a_system_message_for_those_that_have_none() -> None:
    spec = Chat(system="Be brief.")
    tokenizer, ((one,), (other,)) = encoded(spec, turns("q", "a"), {"instruction": "q", "output": "a", "system": "Own."})
    assert whole(tokenizer, one).startswith("|Be brief.\n\nUser: q")
    assert whole(tokenizer, other).startswith("|Own.\n\nUser: q")


def test_fields_and_format_can_be_named() -> None:
    spec = Chat(fields={"instruction": "frage", "output": "antwort"})
    tokenizer, ((one,),) = encoded(spec, {"frage": "q", "antwort": "a"})
    assert learned(tokenizer, one) == " a|"
    row = {"messages": turns("q", "a")["messages"], "instruction": "r", "output": "b"}
    tokenizer, ((one,),) = encoded(Chat(format="alpaca"), row)
    assert learned(tokenizer, one) == " b|"
    with pytest.raises(ConfigError, match="format = 'alpacca': is no format of such records"):
        Chat(format="alpacca")


def test_a_tree_teaches_each_answer_once() -> None:
    def node(text: str, *replies: dict[str, Any], role: str = "prompter") -> dict[str, Any]:
        return {
            "role": role,
            "text": text,
            "replies": [{**one, "role": "assistant" if role == "prompter" else "prompter"} for one in replies],
        }

    tree = node("q", node("a", node("r", node("x"), node("y")), role="assistant"), node("b"))
    tree["replies"][0]["replies"][0]["replies"] = [{"role": "assistant", "text": text, "replies": []} for text in "xy"]
    tokenizer, (sequences,) = encoded(Chat(), {"prompt": tree})
    assert [learned(tokenizer, one) for one in sequences] == [" a| x|", " y|", " b|"]


def long(spec: Chat, row: Any) -> list[Encoded]:
    return encoded(spec, row)[1][0]


FOUR = turns("first", "one", "second", "two", "third", "three")
SIZE = len("|User: first\n\nAssistant: one|\n\nUser: second\n\nAssistant: two|\n\nUser: third\n\nAssistant: three|")


def test_what_fits_is_left_alone() -> None:
    for way in TooLong:
        (one,) = long(Chat(max_tokens=SIZE, too_long=way), FOUR)
        assert (len(one.ids) + 1, one.cut) == (SIZE, 0)


def test_what_is_too_long_is_dropped_or_cut_and_counted() -> None:
    tokenizer = ByteTokenizer()
    assert long(Chat(max_tokens=SIZE - 1, too_long=TooLong.drop), FOUR) == []
    (right,) = long(Chat(max_tokens=SIZE - 1, too_long=TooLong.right), FOUR)
    assert learned(tokenizer, right) == " one| two| thre", "no end that is none"
    assert (len(right.ids), right.cut) == (SIZE - 2, 1)
    (left,) = long(Chat(max_tokens=SIZE - 1, too_long=TooLong.left, system=None), FOUR)
    assert whole(tokenizer, left).startswith("|User: second")
    assert learned(tokenizer, left) == " two| three|"
    assert left.cut == len("User: first\n\nAssistant: one|\n\n")
    (shortest,) = long(Chat(max_tokens=31, too_long=TooLong.left), FOUR)
    assert whole(tokenizer, shortest) == "|User: third\n\nAssistant: three"[:30]


def test_the_system_message_stays_when_the_left_is_cut() -> None:
    (left,) = long(Chat(max_tokens=SIZE, too_long=TooLong.left, system="Be brief."), FOUR)
    assert whole(ByteTokenizer(), left).startswith("|Be brief.\n\nUser: second")


def test_a_cut_that_leaves_nothing_to_learn_leaves_nothing() -> None:
    for way in (TooLong.right, TooLong.left):
        assert long(Chat(max_tokens=10, too_long=way), FOUR) == []
    with pytest.raises(ConfigError, match="max_tokens = 7: must be at least 8"):
        Chat(max_tokens=7)


def test_pictures_go_with_the_questions_that_are_cut() -> None:
    row = {"messages": [{"role": "user", "content": "<image>"}, *FOUR["messages"][1:]], "images": ["1.png"]}
    form = Chat(max_tokens=30, too_long=TooLong.left).build()
    assert isinstance(form, ChatForm)
    shorter = form._shorter(json.loads(kept(form, row))["records"][0])
    assert shorter is not None
    assert shorter["images"] == []
    two = {
        "messages": [*FOUR["messages"][:2], {"role": "user", "content": "<image>x<image>"}, FOUR["messages"][3]],
        "images": ["1", "2"],
    }
    assert form._shorter(json.loads(kept(form, two))["records"][0])["images"] == ["1", "2"]  # type: ignore[index]


def test_many_at_once_are_each_as_alone() -> None:
    rows = [turns("q" * size, "a" * size, "r", "b") for size in (1, 5, 100, 3)]
    spec = Chat(max_tokens=60, too_long=TooLong.right)
    _, together = encoded(spec, *rows)
    alone = [encoded(spec, row)[1][0] for row in rows]
    assert _plain(together) == _plain(alone)


def _plain(found: Sequence[Sequence[Encoded]]) -> Any:
    return [
        [(list(one.ids), None if one.targets is None else np.asarray(one.targets).tolist(), one.cut) for one in some]
        for some in found
    ]


def test_the_fingerprint_knows_every_option() -> None:
    specs = [
        Chat(),
        Chat(template=CHATML),
        Chat(template=Jinja(source=CHATML.source)),
        Chat(format="alpaca"),
        Chat(fields={"a": "b"}),
        Chat(system="s"),
        Chat(max_tokens=8),
        Chat(too_long=TooLong.left),
        Chat(train_on=TrainOn.last),
    ]
    assert len({spec.build().fingerprint() for spec in specs}) == len(specs)
    assert Chat().build().fingerprint() == Chat().build().fingerprint()


def test_a_template_s_tokens_are_asked_for() -> None:
    assert Chat(template=CHATML).build().specials() == ("<|im_start|>", "<|im_end|>")
    assert Chat().build().specials() == ()
