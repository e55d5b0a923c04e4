"""Catalogue of chat templates: how a conversation is written out before it becomes tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec

PLAIN = (
    "{{- bos_token }}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'system' %}{{ message.content }}{{ '\\n\\n' }}"
    "{%- elif message.role == 'assistant' %}Assistant:"
    "{%- generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}{{ '\\n\\n' }}"
    "{%- else %}User: {{ message.content }}{{ '\\n\\n' }}{% endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}Assistant:{% endif -%}"
)
"""Words that every tokenizer can spell, the token that begins a text where a tokenizer has one, and the one that ends a document."""


@dataclass(kw_only=True, slots=True)
class TemplateSpec(Spec):
    """Base of the templates."""

    def read(self) -> tuple[str | None, tuple[str, ...]]:
        """The Jinja text, and the special tokens that it needs; None: that of the tokenizer."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of data/form/template")


@dataclass(kw_only=True, slots=True)
class Own(TemplateSpec):
    """The one that comes with the tokenizer of `init`; for a tokenizer without one, `plain`."""

    def read(self) -> tuple[str | None, tuple[str, ...]]:
        return None, ()


@dataclass(kw_only=True, slots=True)
class Jinja(TemplateSpec):
    """A Jinja text as `transformers` fills it in: `messages`, `tools`, `bos_token`, `eos_token`, `add_generation_prompt`.

    What stands between `{% generation %}` and `{% endgeneration %}` is what the assistant writes.
    """

    source: str = PLAIN
    """The text; the default makes paragraphs of it, `User: ...` and `Assistant: ...`."""
    specials: list[str] = field(default_factory=list)
    """Tokens that it writes and that no user can; a tokenizer without them gets them, where the model's vocabulary has room."""

    def problems(self) -> Iterator[Problem]:
        yield from _spelled(self.specials)

    def read(self) -> tuple[str | None, tuple[str, ...]]:
        return self.source, tuple(self.specials)


@dataclass(kw_only=True, slots=True)
class JinjaFile(TemplateSpec):
    """A Jinja text in a file, as `chat_template.jinja` in published folders."""

    file: str
    """Path of the file."""
    specials: list[str] = field(default_factory=list)
    """As of `jinja`."""

    def problems(self) -> Iterator[Problem]:
        yield from _spelled(self.specials)

    def read(self) -> tuple[str | None, tuple[str, ...]]:
        from llmfactory.data.form.template.jinja_file import read_template

        return read_template(self.file), tuple(self.specials)


def _spelled(specials: list[str]) -> Iterator[Problem]:
    if "" in specials:
        yield Problem("specials", specials, "a special token has no letters", "specials=[]")
