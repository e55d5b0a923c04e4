"""Main text of small pages, English and Chinese; what is no HTML is left alone."""

from __future__ import annotations

import re
import sys
from collections import Counter
from typing import Any

import pytest

from llmfactory.core.errors import MissingExtra
from llmfactory.data.clean import html
from llmfactory.data.clean.html import is_html
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.quality_spec import Favor, Html
from llmfactory.data.clean.step import Drop, Kept, Outcome

ENGLISH = [
    "The old bridge over the river was closed to traffic on Monday, after engineers found cracks in two of its arches.",
    "Repairs are expected to take until the end of spring. Until then, cars are sent round by the motorway to the north.",
    "People who walk or ride a bicycle can still cross it, the council said in a statement, but only one at a time.",
]
CHINESE = [
    "星期一，工程师在河上的老桥的两个桥拱上发现了裂缝，因此这座桥停止通车，所有车辆都要绕行北边的高速公路。",
    "修理工作预计要到春天结束时才能完成。在此之前，市政府提醒大家提前安排好出行的时间，避免在高峰时段出门。",
    "步行和骑自行车的人仍然可以过桥，但是一次只能通过一个人。市政府在一份声明里说，安全是最重要的。",
]
TABLE = "<table><tr><th>Arch</th><th>Cracks</th></tr><tr><td>Northernmost</td><td>Seventeen</td></tr></table>"
COMMENT = "I crossed it every day as a child, and it was cracked even then, whatever the engineers say now about their findings."


def page(paragraphs: list[str], language: str = "en", extra: str = "") -> str:
    body = "\n".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    menu = "".join(f'<li><a href="/{item}">{item}</a></li>' for item in ("Home", "News", "Sports", "Weather", "Contact"))
    return (
        f'<!DOCTYPE html>\n<html lang="{language}"><head><meta charset="utf-8"><title>Bridge</title><script>var x = 1;</script></head>'
        f"<body><nav><ul>{menu}</ul></nav><article><h1>Bridge</h1>{body}{extra}</article>"
        f'<div id="comments" class="comments"><div class="comment"><p>{COMMENT}</p></div></div>'
        "<footer><p>All rights reserved. Imprint. Privacy.</p></footer></body></html>"
    )


def outcome(text: str, **options: Any) -> Outcome:
    return Html(**options).build(None).apply(Page("a", text))  # type: ignore[arg-type]


def text_of(found: Outcome) -> str:
    assert isinstance(found, Kept), found
    return found.text


def f1(found: str, gold: str) -> float:
    """Of words, each as often as it comes; a Chinese character is one."""
    a, b = (Counter(re.findall(r"[一-龥]|[^\W一-龥]+", text.lower())) for text in (found, gold))
    both = (a & b).total()
    return 2 * both / (a.total() + b.total())


@pytest.mark.parametrize(("paragraphs", "language"), [(ENGLISH, "en"), (CHINESE, "zh")], ids=["en", "zh"])
@pytest.mark.parametrize("favor", list(Favor))
def test_main_text(paragraphs: list[str], language: str, favor: Favor) -> None:
    found = outcome(page(paragraphs, language), favor=favor)
    text = text_of(found)
    assert f1(text, "\n".join(["Bridge", *paragraphs])) > 0.95
    assert not any(word in text for word in ("Weather", "Imprint", "var x"))
    assert isinstance(found, Kept)
    assert found.changes == {"main text of HTML": 1}


def test_comments_and_tables() -> None:
    text = page(ENGLISH, extra=TABLE)
    assert COMMENT in text_of(outcome(text, comments=True))
    assert COMMENT not in text_of(outcome(text))
    assert "Seventeen" in text_of(outcome(text))
    assert "Seventeen" not in text_of(outcome(text, tables=False))


def test_favor_reaches_the_extraction(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool]] = []

    def extract(text: str, **options: Any) -> str:
        seen.append((options["favor_precision"], options["favor_recall"]))
        return text

    monkeypatch.setattr(html, "_extract", lambda: extract)
    for favor in (Favor.balanced, Favor.precision, Favor.recall):
        outcome(page(ENGLISH), favor=favor)
    assert seen == [(False, False), (True, False), (False, True)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Plain text.",
        "a < b and c > d",
        "In HTML <p> begins a paragraph, <b> is bold, and </p> ends it. <div> <span> <a>",
        "<3 this text <3",
        "<?php echo 1; ?>",
        "<root><item>1</item><item>2</item><item>3</item></root>",
        "\n".join(CHINESE),
        "# Markdown\n\n<br> a <br> b <br>",
    ],
)
def test_what_is_no_html_is_left_alone(text: str) -> None:
    assert not is_html(text)
    assert outcome(text) == Kept(text)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff\n<!doctype HTML>\n<p>x",
        "<html>",
        "<HTML lang=en>",
        "<div class='a'><p>One</p><p>Two</p></div>",
        "<!-- x --><body>",
    ],
)
def test_what_is_html(text: str) -> None:
    assert is_html(text)


def test_detect() -> None:
    late = "x" * 20 + page(ENGLISH)
    assert outcome(late) == Kept(late)
    assert f1(text_of(outcome(late, detect=False)), "\n".join(["Bridge", *ENGLISH])) > 0.9


@pytest.mark.parametrize("text", ["<html></html>", "<html><body><script>x</script></body></html>", "<html>\x00\x01\ud800"])
def test_a_page_without_main_text_is_dropped(text: str) -> None:
    assert outcome(text) == Drop("no main text", f"of {len(text)} characters")


def test_pages_do_not_know_of_each_other() -> None:
    text = page(ENGLISH)
    first = text_of(outcome(text))
    for _ in range(4):
        outcome(page(ENGLISH, extra=TABLE), comments=True)
        assert text_of(outcome(text)) == first


@pytest.mark.parametrize(
    "text",
    [
        "<html><body>" + "<div>" * 20_000 + ENGLISH[0] + "</div>" * 20_000,
        "<html><body>" + "<p>" * 50_000,
        "<html><body><p>" + "a" * 1_000_000 + "</p>",
        "<html>" + "<" * 100_000,
        "<html><body><table>" + "<tr><td>" * 5_000 + ENGLISH[0],
        page(ENGLISH)[:600],
        page(ENGLISH).replace("the", "&#0; &#xD800; &amp; &bogus; \x00 \ud800"),
    ],
    ids=["deep", "open", "long", "brackets", "tables", "cut", "entities"],
)
def test_broken_pages_do_no_harm(text: str) -> None:
    assert isinstance(outcome(text), Kept | Drop)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    html._extract.cache_clear()
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    with pytest.raises(MissingExtra, match=r"trafilatura.*llmfactory\[data\]"):
        outcome("<html><p>text</p></html>")
