"""Telephone numbers in running text: +international, North America, Europe with its leading 0, China.

A number is only a telephone number by its form, so forms are few, and what has the same form is left alone: dates, prices,
decimals, parts of a DOI or a URL, numbers of versions. In a form that much else has too (2125551234, 212 555 1234) it must stand
behind a word that says so. Numbers for films (555-0100 to 555-0199) and those that
nobody has in China or North America (1200...) are not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from llmfactory.data.clean.identifiers import zones
from llmfactory.data.clean.spans import Span, disjoint

BEFORE = r"(?<![0-9A-Za-z_+])(?<![0-9A-Za-z_]-)(?<![0-9][./])"
BEHIND = r"(?![0-9A-Za-z_]|[.\-/][0-9]|\s?[%％元円]|,[0-9]{3})"
INTERNATIONAL = re.compile(
    r"(?<![0-9A-Za-z_+])(?:\+(?=[1-9(])|(?<![0-9A-Za-z_][./\-])00(?=[1-9][0-9]{0,2}[ \-/]\(?[0-9]))[0-9 .\-()/\u00a0\u2010-\u2014（）]{7,25}"
)
AMERICAN = re.compile(
    rf"{BEFORE}(?:1[ .\-])?(?:\([2-9][0-9]{{2}}\)[ ]?[2-9][0-9]{{2}}[ .\-]|[2-9][0-9]{{2}}(?P<gap>[.\-])[2-9][0-9]{{2}}(?P=gap))"
    rf"[0-9]{{4}}{BEHIND}"
)
EUROPEAN = re.compile(
    rf"{BEFORE}(?:(?<![0-9] )0[1-9](?P<gap>[ .\-])[0-9]{{2}}(?:(?P=gap)[0-9]{{2}}){{3}}(?!(?P=gap)[0-9])|"
    r"(?:[(（]0[1-9][0-9]{1,4}[)）][ ]?|0[1-9][0-9]{1,3}[ /\-])[0-9]{3,8}(?: [0-9]{3,6}|-[0-9]{1,6})?)"
    rf"{BEHIND}"
)
CHINESE = re.compile(
    rf"(?<![0-9A-Za-z_.+])(?<![0-9A-Za-z_][\-/])(?:86[ \-]?)?1[3-9][0-9](?P<gap>[ \-]?)[0-9]{{4}}(?P=gap)[0-9]{{4}}{BEHIND}"
)
CALLED = re.compile(
    r"(?i)(?:(?<!<)\b(?:tel|telephone|phone|call|fax|mobile|cell|whatsapp|hotline|dial)s?(?: (?:number|no\.?|us|me))?(?: (?:is|at|on))?"
    r"|电话|電話|手机|手機|热线|熱線|传真|傳真|致电|致電|拨打|撥打)[号號码碼]{0,2}[^\w\n(+]{0,4}$"
)
MONEY = re.compile(r"[$€£¥￥]\s?$")
OTHERS = re.compile(r"10\.[0-9]{4,9}/\S*$|(?i:https?://\S*|www\.\S*|\bdoi:?\s?\S*|\bisbn(?:-1[03])?:?\s?\S*|\bissn:?\s?\S*)$")
"""Behind it stands a part of a DOI, a URL, the number of a book."""
LOOKS_BACK = 48
MOST, ENOUGH, LEAST = 15, 11, 8
"""Digits: the most of ITU-T E.164; from so many on a further group is taken for another number; the fewest."""


def phones(text: str) -> list[Span]:
    found = []
    for start, end in zones(text):
        for span in _of_zone(text, max(0, start - 2), min(len(text), end + 4)):
            before = text[max(0, span[0] - LOOKS_BACK) : span[0]]
            digits = re.sub("[^0-9]", "", text[slice(*span)])
            if not (_nobody(digits) or MONEY.search(before) or OTHERS.search(before)):
                found.append(span)
    return disjoint(found)


def _of_zone(text: str, start: int, end: int) -> Iterator[Span]:
    for match in INTERNATIONAL.finditer(text, start, end):
        begin, plus = match.start(), text[match.start()] == "+"
        yield from _groups(text, begin + plus, match.end(), begin, LEAST if plus else ENOUGH)
    for pattern in (AMERICAN, EUROPEAN, CHINESE):
        for match in pattern.finditer(text, start, end):
            digits = len(re.sub("[^0-9]", "", match[0]))
            if pattern is not EUROPEAN or (9 if re.search("[/()（）-]", match[0]) else 10) <= digits <= 12:
                yield match.span()
    first = FIRST.search(text, start, end)
    if first is not None and CALLED.search(text[max(0, first.start() - LOOKS_BACK) : first.start()]):
        yield from _groups(text, first.start(), end, first.start(), 7)


OTHER_FORM = re.compile(r"(?:19|20)[0-9]{2}[.\-/][0-9]{1,2}[.\-/][0-9]{1,2}|[0-9]{1,3}(?:\.[0-9]{1,3}){3}")
"""Dates and IP addresses."""
FIRST = re.compile(r"(?:[(（](?=[0-9]{1,5}[)）]))?[0-9]")
GROUP = re.compile(r"[ .\-()/\u00a0\u2010-\u2014（）]{0,3}([0-9]+)[)）]?")


def _groups(text: str, start: int, end: int, begin: int, least: int) -> Iterator[Span]:
    """The number that begins at `begin`, whose digits begin at `start`: as many groups as one number has."""
    digits = place = 0
    while (match := GROUP.match(text, start, end)) and digits < ENOUGH and digits + len(match[1]) <= MOST:
        digits += len(match[1])
        start, place = match.end(), match.end(1)
    shown = text[begin:place]
    decimal = re.fullmatch(r"\+?[0-9]+\.[0-9]+", shown) is not None
    rest = text[place : place + 2]
    if digits < (ENOUGH if decimal else least) or re.match(r"[0-9A-Za-z_%％]|[.,\-:/][0-9]", rest):
        return
    if OTHER_FORM.fullmatch(shown):
        return
    yield begin, place


def _nobody(digits: str) -> bool:
    return digits[-7:-2] == "55501" or (len(digits) == 11 and digits.startswith("1200")) or digits.startswith("000")
