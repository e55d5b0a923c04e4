"""The question of a conversation for a trained model, in the way that it was taught."""

from __future__ import annotations

from collections.abc import Sequence

from llmfactory.core.errors import UserError
from llmfactory.data.form.template.ids import encode
from llmfactory.data.form.template.template import Message, Template
from llmfactory.data.tokenizer.tokenizer import Tokenizer

OF_MODEL = "the chat template of the model"


def chat_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Tokens of a conversation up to where the model's answer begins. Raises UserError where it has no chat template."""
    source = tokenizer.usage.chat_template
    if source is None:
        raise UserError("the model of init knows no chat template: it continues texts (stage.chat=false)")
    ((ids, _),) = encode(tokenizer, [Template(source, OF_MODEL, tokenizer).prompt(messages)])
    return ids
