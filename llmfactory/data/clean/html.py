"""Main text of HTML pages by trafilatura: it compares the density of text and of links of a page's elements, and falls back to two
other extractions where its own finds little."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from llmfactory.core.errors import MissingExtra
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.quality_spec import Favor, Html
from llmfactory.data.clean.step import Drop, Kept, Outcome, Step

HEAD = 4096
"""Characters at the beginning that say whether a page is HTML."""
WHOLE = re.compile(r"<!doctype\s+html|<html[\s>]|<head[\s>]|<body[\s>]", re.IGNORECASE)
TAG = re.compile(
    r"</?(?:p|div|span|br|a|ul|ol|li|h[1-6]|table|td|tr|img|script|meta|link|article|section|nav)(?:\s[^<>]*)?/?>", re.IGNORECASE
)
PIECE = 3
"""Tags in the beginning of what starts with one that make it a piece of a page."""
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no parser of XML takes."""


def is_html(text: str) -> bool:
    """Whether it is a page, or a piece of one: begins with a tag and has several."""
    head = text[:HEAD]
    if "<" not in head:
        return False
    begin = head.lstrip("\ufeff \t\r\n")
    if not begin.startswith("<"):
        return False
    return WHOLE.search(head) is not None or len(TAG.findall(head)) >= PIECE


@functools.cache
def _extract() -> Callable[..., str | None]:
    try:
        from trafilatura import extract
    except ImportError as error:
        raise MissingExtra("trafilatura", "data", "data/clean=[html]") from error
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # what it cannot extract is counted as dropped
    found: Callable[..., str | None] = extract
    return found


class HtmlText(Step):
    def __init__(self, spec: Html) -> None:
        self.spec = spec
        self.options: dict[str, Any] = {
            "favor_precision": spec.favor is Favor.precision,
            "favor_recall": spec.favor is Favor.recall,
            "include_comments": spec.comments,
            "include_tables": spec.tables,
            "deduplicate": False,  # it would remember other pages
            "with_metadata": False,
        }

    def fingerprint(self) -> str:
        _extract()
        return f"html/1 trafilatura {version('trafilatura')} lxml {version('lxml')} {self.spec}"

    def apply(self, page: Page) -> Outcome:
        if self.spec.detect and not is_html(page.text):
            return Kept(page.text)
        clean = NO_XML.sub("", page.text)
        if not clean.strip():
            return Drop("no main text", f"of {len(page.text)} characters")
        text = _extract()(clean, **self.options)
        if not text or not text.strip():
            return Drop("no main text", f"of {len(page.text)} characters")
        return Kept(text, {"main text of HTML": 1})
