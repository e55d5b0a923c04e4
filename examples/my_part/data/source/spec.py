from __future__ import annotations

from dataclasses import dataclass

from llmfactory.data.source.spec import SourceSpec


@dataclass(kw_only=True, slots=True)
class Sections(SourceSpec):
    """One Markdown file; each heading starts a document."""

    file: str
    """The file."""

    def build(self):
        from my_part.data.source.sections import MarkdownSections

        return MarkdownSections(self)
