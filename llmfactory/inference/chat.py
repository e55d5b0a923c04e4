"""A conversation as the tokens that a model was taught to read one as: its own Jinja template, run in Jinja's sandbox.

A message is text: where it spells a special token (`<|im_end|>`), it speaks about it and does not end its turn. So such
places are marked before the template sees them, and only the template's own special tokens become special ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.tokenizer import Tokenizer

Message = dict[str, str]
"""`role` (system, user, assistant) and `content`."""
FIRST_MARK = 0xF0000
"""Of the private-use characters, which stand for nothing."""


def chat_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Tokens of a conversation up to where the model's answer begins. Raises UserError where it has no chat template."""
    template = tokenizer.usage.chat_template
    if template is None or not isinstance(tokenizer, HfTokenizer):
        raise UserError("the model of init knows no chat template: it continues texts (stage.chat=false)")
    added = tokenizer.inner.get_added_tokens_decoder()
    specials = {token.content: number for number, token in added.items() if token.special}
    names = sorted(specials, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")
    mark = _mark(template, messages)
    marked = [{**message, "content": pattern.sub(lambda m: mark.join(m[0]) + mark, message["content"])} for message in messages]
    text = render(template, marked, _tokens(tokenizer))
    ids: list[int] = []
    place = 0
    for match in pattern.finditer(text):
        ids += [*tokenizer.encode(text[place : match.start()].replace(mark, "")), specials[match[0]]]
        place = match.end()
    return ids + tokenizer.encode(text[place:].replace(mark, ""))


def render(template: str, messages: Sequence[Message], tokens: dict[str, str]) -> str:
    """The text of a conversation. Raises UserError with what the template says is wrong."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, indent=options.get("indent"))
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    try:
        made: str = environment.from_string(template).render(messages=list(messages), add_generation_prompt=True, **tokens)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
        raise UserError(f"the chat template of the model cannot be filled in: {error}") from error
    return made


def _refuse(message: str) -> Any:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _tokens(tokenizer: HfTokenizer) -> dict[str, str]:
    """The variables that templates know beside the messages."""
    begin = tokenizer.usage.begin_ids
    named = {"eos_token": tokenizer.end_id, **({"bos_token": begin[0]} if begin else {})}
    return {"bos_token": "", **{name: str(tokenizer.inner.id_to_token(number)) for name, number in named.items()}}


def _mark(template: str, messages: Sequence[Message]) -> str:
    """A character that occurs nowhere."""
    used = {*template, *(character for message in messages for character in message["content"])}
    return next(mark for mark in map(chr, range(FIRST_MARK, 0xFFFFE)) if mark not in used)
