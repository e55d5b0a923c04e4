"""A document on its way through the steps, with what several of them look at, worked out once."""

from __future__ import annotations

from functools import cached_property


class Page:
    """A step that changes the text makes a new page of it, so what was worked out here always fits the text."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text

    def with_text(self, text: str) -> Page:
        return self if text == self.text else Page(self.name, text)

    @cached_property
    def size(self) -> int:
        """UTF-8 bytes."""
        return len(self.text) if self.text.isascii() else len(self.text.encode())

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()
