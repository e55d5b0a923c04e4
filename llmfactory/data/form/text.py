"""Plain text: every token is a target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmfactory.data.clean.page import Page
from llmfactory.data.clean.step import Drop, Kept, Outcome
from llmfactory.data.form.form import Encoded, Form, Sequences
from llmfactory.data.tokenizer.tokenizer import Tokenizer


class PlainText(Form):
    def fingerprint(self) -> str:
        return "text"

    def normalize(self, page: Page) -> Outcome:
        return Kept(page.text) if page.text.strip() else Drop("empty document")

    def texts(self, text: str) -> Iterator[str]:
        yield text

    def encode(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[Sequences]:
        return [[Encoded(ids)] for ids in tokenizer.encode_arrays(texts)]
