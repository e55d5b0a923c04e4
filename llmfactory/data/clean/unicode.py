"""Mends characters: what was decoded with the wrong encoding (ftfy), control and invisible characters, line ends, normal forms.

Everything is asked for first by a cheap look at the whole text, so that clean text, ASCII above all, costs next to nothing.
ftfy mends encodings and nothing else here: its other habits (straight quotes, full-width marks turned into ASCII, HTML entities
resolved) change text that is right, Chinese above all.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from importlib.metadata import version
from typing import Literal

from llmfactory.data.clean.page import Page
from llmfactory.data.clean.quality_spec import Normal, Unicode
from llmfactory.data.clean.step import Kept, Outcome, Step

LINE_END = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
CONTROLS = "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufff9-\ufffb\ufffe\uffff"
INVISIBLE = "\u00ad\u180e\u200b\u2060-\u2064\ufeff\u202a-\u202e\u2066-\u2069"
SURROGATES = "\ud800-\udfff"
REMOVED = {"control characters": re.compile(f"[{CONTROLS}]"), "invisible characters": re.compile(f"[{INVISIBLE}]")}
SURROGATE = re.compile(f"[{SURROGATES}]")
UNWANTED = re.compile(f"[{CONTROLS}{INVISIBLE}{SURROGATES}]")
ASCII_CONTROLS = bytes(code for code in range(128) if REMOVED["control characters"].match(chr(code)))
_FIRST = "\xa0-\u2012\u2015-\u2017\u201a\u201b\u201e-\u2025\u2027-\u2fff\uf8ff\ufb01\ufb02"
_TYPOGRAPHIC = "\u2013\u2014\u2018\u2019\u201c\u201d\u2026"
SUSPECT = re.compile(f"[\x80-\x9f]|[{_FIRST}][{_FIRST}{_TYPOGRAPHIC}\x80-\x9f\ufffd ]|[{_TYPOGRAPHIC}][{_FIRST}\x80-\x9f\ufffd]")
"""What every text has that was UTF-8 and was decoded one byte a character: two characters in a row from the encodings of one byte
(the second may have turned into a space), or a control character. Dashes and quotation marks follow each other in good text."""
FULL_WIDTH = re.compile("[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]")
HALF = {code: code - 0xFEE0 for span in ((0xFF10, 0xFF1A), (0xFF21, 0xFF3B), (0xFF41, 0xFF5B)) for code in range(*span)}
BLANKS = " \t\u00a0\u3000"
ROUNDS = 4
"""What is mended may bring another thing to light; as often as that it is looked at again."""


class UnicodeRepair(Step):
    def __init__(self, spec: Unicode) -> None:
        self.spec = spec

    def fingerprint(self) -> str:
        return f"unicode/1 ftfy {version('ftfy')} unicode {unicodedata.unidata_version} {self.spec}"

    def apply(self, page: Page) -> Outcome:
        text, changes = page.text, Counter[str]()
        for _ in range(ROUNDS):
            mended = self._mend(text, changes)
            if mended == text:
                break
            text = mended
        return Kept(text, dict(changes))

    def _mend(self, text: str, changes: Counter[str]) -> str:
        spec = self.spec
        if spec.repair and not text.isascii():
            text = _repair(text, changes)
        if spec.controls and _has_unwanted(text):
            text = _replace(SURROGATE, "\ufffd", text, changes, "half surrogate pairs")
            for reason, characters in REMOVED.items():
                text = _replace(characters, "", text, changes, reason)
        if spec.line_ends and ("\r" in text or "\x0b" in text or "\x0c" in text or not text.isascii()):
            text = _replace(LINE_END, "\n", text, changes, "line ends")
        if not text.isascii():
            text = self._normalize(text, changes)
        return _strip_ends(text, changes) if spec.trailing else text

    def _normalize(self, text: str, changes: Counter[str]) -> str:
        if self.spec.half_width and (found := len(FULL_WIDTH.findall(text))):
            changes["full-width characters"] += found
            text = text.translate(HALF)
        if self.spec.normal is Normal.none:
            return text
        form: Literal["NFC", "NFKC"] = "NFC" if self.spec.normal is Normal.NFC else "NFKC"
        if unicodedata.is_normalized(form, text):
            return text
        lines = text.split("\n")
        normal = [unicodedata.normalize(form, line) for line in lines]
        changes["lines in another normal form"] += sum(map(str.__ne__, lines, normal))
        return "\n".join(normal)


def _has_unwanted(text: str) -> bool:
    if text.isascii():
        raw = text.encode()
        return len(raw.translate(None, ASCII_CONTROLS)) < len(raw)
    return UNWANTED.search(text) is not None


def _replace(pattern: re.Pattern[str], by: str, text: str, changes: Counter[str], reason: str) -> str:
    text, found = pattern.subn(by, text)
    if found:
        changes[reason] += found
    return text


def _repair(text: str, changes: Counter[str]) -> str:
    """Lines that look as if they were decoded wrongly, mended one by one: each may have an encoding of its own."""
    if not SUSPECT.search(text):
        return text
    from ftfy import fix_encoding

    lines = text.split("\n")
    mended = [fix_encoding(line) if not line.isascii() and SUSPECT.search(line) else line for line in lines]
    found = sum(map(str.__ne__, lines, mended))
    if found:
        changes["lines decoded wrongly"] += found
    return "\n".join(mended)


def _strip_ends(text: str, changes: Counter[str]) -> str:
    # No expression of the form ` +$` here: on a long run of spaces it takes quadratic time.
    if text[-1:] not in BLANKS and not any(f"{blank}\n" in text for blank in BLANKS):
        return text
    lines = text.split("\n")
    stripped = [line.rstrip(BLANKS) for line in lines]
    found = sum(map(str.__ne__, lines, stripped))
    if found:
        changes["lines with white space at the end"] += found
    return "\n".join(stripped)
