"""The number of the answer is the right one.

Numbers are compared as fractions, so that 0.1 is 1/10 and no rounding decides; a sign, currency or percent beside one is read over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from llmfactory.stage.grader.extraction import extract, references
from llmfactory.stage.grader.grader import Answer, Grader
from llmfactory.stage.grader.text_spec import Number

DIGITS = r"(?:\d{1,3}(?:(?:,|\{,\}|\\,)\d{3})+(?!\d)|\d+)"
DECIMAL = rf"(?:{DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{{1,3}}(?!\d))?"
SIGN = r"(?:(?<![\w.)}])[-\u2212+])?"
CURRENCY = r"(?:\\?[$\u20ac\u00a3]\s?)?"
TEX = rf"\\[dt]?frac\s*\{{\s*(?P<over>[-\u2212]?{DECIMAL})\s*\}}\s*\{{\s*(?P<under>{DECIMAL})\s*\}}"
PLAIN = rf"(?:(?P<whole>\d+)\s+)?(?P<top>{DIGITS})\s?/\s?(?P<bottom>{DIGITS})"
NUMBER = re.compile(rf"(?P<sign>{SIGN}){CURRENCY}(?:{TEX}|{PLAIN}|(?P<decimal>{DECIMAL}))")
MARKS = str.maketrans({"\u2212": "-", ",": "", "{": "", "}": "", "\\": ""})


def last_number(text: str) -> Fraction | None:
    """None: no number stands in it."""
    found = list(NUMBER.finditer(text))
    return _value(found[-1]) if found else None


def _value(match: re.Match[str]) -> Fraction | None:
    parts = {name: text.translate(MARKS) for name, text in match.groupdict().items() if text is not None}
    sign = -1 if parts["sign"].strip() == "-" else 1
    try:
        if "decimal" in parts:
            return sign * Fraction(parts["decimal"])
        if "over" in parts:
            return sign * Fraction(parts["over"]) / Fraction(parts["under"])
        return sign * (Fraction(parts.get("whole", "0")) + Fraction(parts["top"]) / Fraction(parts["bottom"]))
    except ZeroDivisionError:
        return None


class NumberGrader(Grader):
    def __init__(self, spec: Number) -> None:
        self.spec = spec

    def grade(self, answers: Sequence[Answer]) -> list[float]:
        return [self._one(answer) for answer in answers]

    def _one(self, answer: Answer) -> float:
        right = [last_number(one) for one in references(answer.record, self.spec.field)]
        if None in right:
            raise ValueError(f"the field {self.spec.field!r} of the record holds no number")
        part = extract(answer.text, self.spec.take, self.spec.mark)
        said = None if part is None else last_number(part)
        return float(said is not None and any(self._equal(said, one) for one in right if one is not None))

    def _equal(self, said: Fraction, right: Fraction) -> bool:
        return abs(said - right) <= Fraction(self.spec.tolerance) * max(Fraction(1), abs(right))
