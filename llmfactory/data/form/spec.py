"""Catalogue of forms: what a document of a source means, and how it becomes tokens with targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.core.spec import Spec

if TYPE_CHECKING:
    from llmfactory.data.form.form import Form


@dataclass(kw_only=True, slots=True)
class FormSpec(Spec):
    """Base of the forms."""

    def build(self) -> Form:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of data/form")


@dataclass(kw_only=True, slots=True)
class Text(FormSpec):
    """A document is a text, and every token of it a target."""

    def build(self) -> Form:
        from llmfactory.data.form.text import PlainText

        return PlainText()
