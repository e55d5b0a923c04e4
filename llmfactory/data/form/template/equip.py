"""A tokenizer that knows a template: its special tokens have ids, a model that writes one of its ends stops, and it keeps the text.

So what is trained on conversations can be asked in the same way later, from its checkpoint alone.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.data.form.template.spec import PLAIN
from llmfactory.data.form.template.template import Template, special_tokens
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.tokenizer import Tokenizer

NAMED = "the chat template (data.form.template)"
OWN = "the tokenizer's chat template"
PROBE = ({"role": "user", "content": "x"}, {"role": "assistant", "content": "y"})


def equip(tokenizer: Tokenizer, source: str | None, specials: Sequence[str], vocab_size: int) -> Tokenizer:
    """Another tokenizer, of at most `vocab_size` ids. `source`: None for its own template, or `plain` where it has none."""
    chosen = source or tokenizer.usage.chat_template or PLAIN
    tokenizer = _with_tokens(tokenizer, specials, vocab_size)
    ends = (piece.token for piece in Template(chosen, NAMED, tokenizer).pieces(PROBE) if piece.turn == 0)
    end = [*ends][-1:]
    stops = dict.fromkeys([*tokenizer.usage.stop_ids, *(token for token in end if token is not None)])
    equipped = copy.copy(tokenizer)
    equipped.usage = replace(tokenizer.usage, chat_template=chosen, stop_ids=tuple(stops))
    return equipped


def template_of(tokenizer: Tokenizer, source: str | None) -> Template:
    """The template that conversations are written with."""
    if source is not None:
        return Template(source, NAMED, tokenizer)
    own = tokenizer.usage.chat_template
    return Template(own or PLAIN, OWN if own else NAMED, tokenizer)


def _with_tokens(tokenizer: Tokenizer, specials: Sequence[str], vocab_size: int) -> Tokenizer:
    missing = [name for name in specials if name not in special_tokens(tokenizer)]
    if not missing:
        return tokenizer
    if not isinstance(tokenizer, HfTokenizer):
        raise UserError(
            f"{NAMED} needs the special tokens {' '.join(missing)}, and this tokenizer can have no more. "
            "Try data/form/template=plain, or data/tokenizer=byte_bpe"
        )
    known = tokenizer.inner.get_vocab(with_added_tokens=True)
    size = tokenizer.vocab_size + sum(name not in known for name in missing)
    if size > vocab_size:
        raise UserError(
            f"{NAMED} needs the special tokens {' '.join(missing)}, with which the tokenizer has {size} ids, the model only "
            f"{vocab_size} (model.vocab_size). Try data/form/template=plain, or model.vocab_size={size} where the model is new"
        )
    return HfTokenizer(_added(tokenizer.inner, missing), tokenizer.end_id, tokenizer.usage)


def _added(inner: Any, names: Sequence[str]) -> Any:
    from tokenizers import AddedToken, Tokenizer

    content = json.loads(inner.to_str())
    made = Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return made
