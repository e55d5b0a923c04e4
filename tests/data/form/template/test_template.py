"""Every named template, token by token: what the assistant writes, what no text can spell, what `transformers` makes of it."""

from __future__ import annotations

import re
from typing import Any

import chat_templates as shared
import pytest
from chat_templates import NAMED, SYSTEM, TOOL_TURNS, TOOLS, TURNS, WITH_TOOLS

from llmfactory.core.errors import UserError
from llmfactory.data.form.template.ids import encode
from llmfactory.data.form.template.template import READ, Template
from llmfactory.data.tokenizer.hf_file import HfTokenizer

ENDS = {
    "alpaca": "<|endoftext|>",
    "baichuan2": "<|endoftext|>",
    "chatglm2": "<|endoftext|>",
    "chatml": "<|im_end|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "gemma": "<end_of_turn>",
    "glm4": "<|user|>",
    "llama2": " </s>",
    "llama3": "<|eot_id|>",
    "mistral": "</s>",
    "phi3": "<|end|>",
    "plain": "<|endoftext|>",
    "qwen2_5": "<|im_end|>",
    "vicuna": "</s>",
    "zephyr": "<|endoftext|>",
}
BEGINS = {"glm4": "\n", "llama2": " ", "mistral": " ", "plain": " ", "vicuna": " "}
"""What the assistant writes before its answer, because the prompt for it ends earlier."""
CONVERSATIONS = {"turns": TURNS, "system": [SYSTEM, *TURNS], "one": TURNS[:2]}


def template(name: str) -> tuple[HfTokenizer, Template]:
    tokenizer = shared.equipped(name)
    return tokenizer, Template(shared.source_of(name)[0], name, tokenizer)


def learned(
    tokenizer: HfTokenizer, made: Template, messages: list[dict[str, Any]], tools: Any = (), last: bool = False
) -> list[str]:
    """The text of exactly those tokens that each turn of the assistant consists of."""
    ((ids, turns),) = encode(tokenizer, [made.pieces(messages, tools, last)])
    numbers = sorted({int(turn) for turn in turns if turn != READ})
    of_turn = ([i for i, turn in zip(ids, turns, strict=True) if turn == number] for number in numbers)
    return [tokenizer.inner.decode(some, skip_special_tokens=False) for some in of_turn]


@pytest.mark.parametrize("which", CONVERSATIONS)
@pytest.mark.parametrize("name", NAMED)
def test_exactly_the_answers_and_their_ends_are_written_by_the_assistant(name: str, which: str) -> None:
    tokenizer, made = template(name)
    messages = CONVERSATIONS[which]
    said = [message["content"] for message in messages if message["role"] == "assistant"]
    assert learned(tokenizer, made, messages) == [BEGINS.get(name, "") + text + ENDS[name] for text in said]


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_a_call_of_a_tool_is_written_by_the_assistant_and_its_result_is_not(name: str) -> None:
    tokenizer, made = template(name)
    call, answer = learned(tokenizer, made, TOOL_TURNS, TOOLS)
    assert '"weather"' in call
    assert shared.ATTACK.replace("\n", "\\n") in call, "arguments are JSON"
    assert call.endswith(ENDS[name])
    assert answer == BEGINS.get(name, "") + "It is sunny." + ENDS[name]


def untagged(source: str) -> str:
    """The same template without its generation tags."""
    return re.sub(
        r"\{%(-?)\s*(end)?generation\s*(-?)%\}", lambda m: f"{{%{m[1]} {'endif' if m[2] else 'if true'} {m[3]}%}}", source
    )


@pytest.mark.parametrize("name", NAMED)
def test_both_ways_of_finding_what_the_assistant_writes_agree(name: str) -> None:
    tokenizer, made = template(name)
    bare = Template(untagged(made.source), name, tokenizer)
    assert "endgeneration" not in bare.source
    known = [*CONVERSATIONS.values()] + ([TOOL_TURNS] if name in WITH_TOOLS else [])
    for messages in known:
        tools = TOOLS if messages is TOOL_TURNS else ()
        (ids, turns), (others, other_turns) = encode(tokenizer, [made.pieces(messages, tools), bare.pieces(messages, tools)])
        assert ids == others
        assert turns.tolist() == other_turns.tolist()
        assert learned(tokenizer, bare, messages, tools, last=True) == learned(tokenizer, made, messages, tools)[-1:]


@pytest.mark.parametrize("name", NAMED)
def test_a_user_s_text_never_becomes_a_special_token(name: str) -> None:
    """All special tokens of a conversation full of their names are those of the same one without."""
    tokenizer, made = template(name)
    attack = "".join(made.specials) + shared.ATTACK
    halves = [token[:-1] for token in made.specials]
    for text in (attack, f" {attack} ", *halves, "".join(reversed(list(made.specials)))):
        calm, wild = (
            [SYSTEM, {"role": "user", "content": content}, TURNS[1], {"role": "user", "content": content}, TURNS[3]]
            for content in ("calm", text)
        )
        (ids, turns), (others, other_turns) = encode(tokenizer, [made.pieces(wild), made.pieces(calm)])
        specials = set(made.specials.values())
        assert [i for i in ids if i in specials] == [i for i in others if i in specials]
        assert learned(tokenizer, made, wild) == learned(tokenizer, made, calm)
        assert text.strip() in tokenizer.inner.decode(ids, skip_special_tokens=False), "and nothing of it is lost"
        assert int(turns.max()) == int(other_turns.max()) == 1


def test_two_texts_that_meet_make_no_special_token() -> None:
    tokenizer = shared.equipped("chatml")
    joined = "{% for message in messages %}{{ message.content }}{% endfor %}"
    made = Template(joined, "joined", tokenizer)
    for cut in range(1, len("<|im_end|>")):
        halves = ["<|im_end|>"[:cut], "<|im_end|>"[cut:]]
        ((ids, _),) = encode(tokenizer, [made.prompt([{"role": "user", "content": half} for half in halves])])
        assert made.specials["<|im_end|>"] not in ids
        assert tokenizer.inner.decode(ids) == "<|im_end|>"


@pytest.mark.parametrize(("source", "text"), [("<{{ text }}", "|im_end|>"), ("{{ text }}>", "<|im_end|")])
def test_a_text_and_what_stands_beside_it_make_no_special_token(source: str, text: str) -> None:
    tokenizer = shared.equipped("chatml")
    made = Template(source.replace("text", "messages[0].content"), "it", tokenizer)
    ((ids, _),) = encode(tokenizer, [made.prompt([{"role": "user", "content": text}])])
    assert tokenizer.inner.decode(ids) == "<|im_end|>"
    assert made.specials["<|im_end|>"] not in ids


@pytest.mark.parametrize("name", NAMED)
def test_the_prompt_is_what_stands_before_each_answer(name: str) -> None:
    """So training sees the very tokens that a question at inference consists of."""
    tokenizer, made = template(name)
    messages = [SYSTEM, *TURNS]
    ((ids, turns),) = encode(tokenizer, [made.pieces(messages)])
    for number, place in enumerate(place for place, message in enumerate(messages) if message["role"] == "assistant"):
        ((asked, _),) = encode(tokenizer, [made.prompt(messages[:place])])
        assert asked == ids[: turns.tolist().index(number)]


@pytest.mark.parametrize("name", NAMED)
def test_transformers_makes_the_same(name: str) -> None:
    """Text, ids and the mask of the assistant's tokens, where no text spells a special token."""
    from transformers import PreTrainedTokenizerFast

    tokenizer, made = template(name)
    inner = type(tokenizer.inner).from_str(tokenizer.inner.to_str())
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=inner, chat_template=made.source, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    cases = [([SYSTEM, *TURNS], None), ([*TURNS], None)]
    if name in WITH_TOOLS:
        tools = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}]
        call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
        calm = [TOOL_TURNS[0], {**TOOL_TURNS[1], "tool_calls": [call]}, {**TOOL_TURNS[2], "content": "sunny"}, TOOL_TURNS[3]]
        cases.append((calm, tools))
    for messages, tools in cases:
        found = theirs.apply_chat_template(messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
        pieces = made.pieces(messages, tools or ())
        assert "".join(piece.text for piece in pieces) == theirs.apply_chat_template(messages, tools=tools, tokenize=False)
        ((ids, turns),) = encode(tokenizer, [pieces])
        assert ids == found["input_ids"]
        assert [int(turn != READ) for turn in turns] == found["assistant_masks"]


PHI = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def test_what_ends_a_conversation_is_not_what_ends_a_turn() -> None:
    tokenizer = shared.equipped("phi3")
    made = Template(PHI, "phi", tokenizer)
    assert learned(tokenizer, made, TURNS) == [TURNS[1]["content"] + "<|end|>", TURNS[3]["content"] + "<|end|>"]


def test_a_template_without_special_tokens() -> None:
    tokenizer = shared.trained()
    source = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    assert learned(tokenizer, Template(source, "words", tokenizer), TURNS) == [" Some words!\nAnd more\n", " 再见 👋\n"]


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""An answer is written otherwise when something follows it."""


def test_a_template_that_looks_ahead_is_refused_or_learned_from_at_its_end() -> None:
    tokenizer = shared.equipped("chatml")
    made = Template(THINKING, "the template of x", tokenizer)
    with pytest.raises(UserError, match=r"the template of x writes a turn otherwise.*Hi, who are you.*train_on=last"):
        made.pieces(TURNS)
    assert learned(tokenizer, made, TURNS, last=True) == ["<think>\n\n</think>\n\n" + TURNS[3]["content"] + "<|im_end|>"]


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}bot:{% endif %}",  # another prompt
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",  # it begins otherwise
        "{% for m in messages %}{{ m.role }}:{{ '' if m.role == 'assistant' else m.content }};{% endfor %}",  # nothing said
    ],
)
def test_other_templates_that_cannot_be_told_apart_are_refused(source: str) -> None:
    with pytest.raises(UserError, match="it writes a turn otherwise"):
        Template(source, "it", shared.trained()).pieces(TURNS)


def test_tools_that_a_template_would_leave_out_are_refused() -> None:
    made = template("zephyr")[1]
    with pytest.raises(UserError, match=r"zephyr does not write tools and tool_calls and tool.*chatml"):
        made.pieces(TOOL_TURNS, TOOLS)
    with pytest.raises(UserError, match=r"does not write tools, which"):
        made.pieces(TURNS, TOOLS)
    with pytest.raises(UserError, match="roles must alternate"):
        template("gemma")[1].pieces([*TURNS, TURNS[1]])


def test_pictures_become_their_token_or_are_the_template_s_matter() -> None:
    from llmfactory.data.form.template.equip import equip

    parts = [{"type": "image"}, {"type": "text", "text": "What is <image>?"}]
    messages = [{"role": "user", "content": parts}, TURNS[1]]
    plain = shared.equipped("chatml")
    source = shared.source_of("chatml")[0]
    with pytest.raises(UserError, match=r"it writes pictures as <image>, which is no special token"):
        Template(source, "it", plain).pieces(messages)
    tokenizer = equip(plain, source, ["<image>"], 400)
    made = Template(source, "it", tokenizer)
    ((ids, _),) = encode(tokenizer, [made.pieces(messages)])
    assert ids.count(made.specials["<image>"]) == 1, "the picture, not the word of the user"
    listing = (
        "{% for m in messages %}{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}{% endfor %}"
    )
    ((listed, _),) = encode(tokenizer, [Template(listing, "it", tokenizer).prompt(messages[:1])])
    assert listed.count(made.specials["<image>"]) == 1


def test_a_template_that_counts_the_letters_of_a_marked_text_is_refused() -> None:
    tokenizer = shared.equipped("chatml")
    counting = Template("{% for m in messages %}{{ m.content }} {{ m.content | length }}{% endfor %}", "it", tokenizer)
    counting.prompt(TURNS[2:3])
    with pytest.raises(UserError, match="it looks into texts that spell special tokens"):
        counting.prompt([{"role": "user", "content": "<|im_end|>"}])


def test_private_characters_that_mark_generations_are_refused() -> None:
    _, made = template("chatml")
    with pytest.raises(UserError, match="private-use characters"):
        made.pieces([{"role": "user", "content": "\U000f0000"}, TURNS[1]])
    made.pieces([{"role": "user", "content": "\U000f0002<|im_end|>"}, TURNS[1]])
