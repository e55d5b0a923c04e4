"""Numbers that stand for a person or an account, most with a check digit: payment cards, IBAN, US social security, Chinese residents.

Few places of a text have seven digits with nothing but spaces and dashes between them. Those are found once (`zones`), and the
finders look there only.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from functools import lru_cache

from llmfactory.data.clean.spans import Span, disjoint

FEWEST = 7
"""Digits of the shortest number that any finder looks for."""
ZONE = re.compile(r"[0-9][0-9 .\-()/\u00a0\u2010-\u2014（）]{5,}[0-9]")
BEYOND = 4
"""Characters around a zone that may belong to a number in it or decide about it."""
LONGEST = 42
"""Characters of an IBAN, spaces too."""
NOT_BEFORE = r"(?<![0-9A-Za-z_.])"
NOT_BEHIND = r"(?![0-9A-Za-z_]|\.[0-9])"


@lru_cache(maxsize=1)  # the finders of one text ask one after another
def zones(text: str) -> tuple[Span, ...]:
    """Where numbers of seven digits or more may be."""
    return tuple(match.span() for match in ZONE.finditer(text) if _digits(match[0]) >= FEWEST)


def _digits(text: str) -> int:
    return len(text) - sum(map(text.count, " .-()/\u00a0\u2010\u2011\u2012\u2013\u2014（）"))


def _in_zones(pattern: re.Pattern[str], text: str, fewest: int) -> Iterator[re.Match[str]]:
    for start, end in zones(text):
        if end - start + 1 >= fewest:
            yield from pattern.finditer(text, start, min(len(text), end + BEYOND))


def _around_zones(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    done = 0
    for start, end in zones(text):
        for match in pattern.finditer(text, max(done, start - LONGEST), end + LONGEST):
            if match.start() >= end:  # cut off: if it is one, another zone has it whole
                break
            yield match
            done = match.end()


# ---- payment cards

CARD = re.compile(
    rf"{NOT_BEFORE}(?=(?P<all>[0-9]{{13,19}}(?![0-9])|"
    r"[0-9]{4}(?P<gap>[ \-])[0-9]{4}(?P=gap)[0-9]{4}(?P=gap)[0-9]{1,4}(?![0-9])(?:(?P=gap)[0-9]{1,3}(?![0-9]))?|"
    r"3[0-9]{3}(?P<amex>[ \-])[0-9]{6}(?P=amex)[0-9]{4,5}(?![0-9])))[0-9]"
)
ISSUERS = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})"  # Visa
    r"|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}"  # Mastercard
    r"|3[47][0-9]{13}"  # American Express
    r"|3(?:0[0-59]|[689][0-9])[0-9]{11}|36[0-9]{12,17}"  # Diners Club
    r"|(?:6011|65[0-9]{2}|64[4-9][0-9])[0-9]{12,15}"  # Discover
    r"|35(?:2[89]|[3-8][0-9])[0-9]{12,15}"  # JCB
    r"|(?:62|81)[0-9]{14,17}"  # UnionPay
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])[0-9]{9,15}"  # Maestro
)


def cards(text: str) -> list[Span]:
    """ISO/IEC 7812: the issuer's range of numbers and Luhn's check digit; in one piece, or in the groups that are printed."""
    found, behind = [], 0
    for match in _in_zones(CARD, text, 13):
        start = match.start()
        if start < behind:
            continue
        for shown in _shorter(match["all"]):
            digits = re.sub("[^0-9]", "", shown)
            if ISSUERS.fullmatch(digits) and luhn(digits) and not _joins(text, start + len(shown)):
                behind = start + len(shown)
                found.append((start, behind))
                break
    return found


def _shorter(shown: str) -> Iterator[str]:
    """As it stands, and without a last group, which may be another number (4111 1111 1111 1111 123)."""
    yield shown
    groups = re.findall("[0-9]+", shown)
    if len(groups) == 5:
        yield shown[: -len(groups[-1]) - 1]


def _joins(text: str, place: int) -> bool:
    behind = text[place : place + 2]
    return re.match(r"[0-9A-Za-z_]|\.[0-9]", behind) is not None


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B: every second digit from the right, the last aside, counts double, by its digits' sum."""
    total = sum(map(int, digits[-1::-2]))
    return (total + sum(sum(divmod(2 * int(d), 10)) for d in digits[-2::-2])) % 10 == 0


# ---- IBAN

IBAN = re.compile(r"(?=([A-Z]{2}[0-9]{2}(?:[ ]?[A-Z0-9]){11,30}))[A-Z]")
IBAN_LENGTHS = {
    name: length
    for length, names in {
        15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for name in names.split()
}  # fmt: skip
"""ISO 13616 registry: characters of a country's numbers."""


def ibans(text: str) -> list[Span]:
    """Country, its length, and the remainder 1 modulo 97 (ISO 13616, ISO 7064 mod 97-10). Seven digits of it stand together."""
    found = []
    for match in _around_zones(IBAN, text):
        start, shown = match.start(), match[1]
        length = IBAN_LENGTHS.get(shown[:2])
        if length is None or (start and re.match(r"[0-9A-Za-z_]", text[start - 1])):
            continue
        places = [place for place, c in enumerate(shown) if c != " "][:length]
        number, end = "".join(shown[place] for place in places), start + places[-1] + 1
        if len(number) == length and mod97(number) == 1 and not _joins(text, end):
            found.append((start, end))
    return disjoint(found)


def mod97(number: str) -> int:
    """The number with its first four characters behind, letters as 10 to 35."""
    return int("".join(str(int(c, 36)) for c in number[4:] + number[:4])) % 97


# ---- US social security

SSN = re.compile(
    rf"{NOT_BEFORE}(?<![0-9]-)(?!000|666|9)[0-9]{{3}}(?P<gap>[ \-]?)(?!00)[0-9]{{2}}(?P=gap)(?!0000)[0-9]{{4}}{NOT_BEHIND}(?!-[0-9])"
)
SPOKEN_OF = re.compile(r"(?i)(?:(?<!<)\bssn?|social security(?: (?:number|no\.?|#))?)(?:\s+(?:is|was))?\W{0,4}$")


def ssns(text: str) -> list[Span]:
    """Ranges that are given out; without dashes only where the words before say what it is."""
    found = []
    for match in _in_zones(SSN, text, 9):
        if match["gap"] == "-" or SPOKEN_OF.search(text[max(0, match.start() - 32) : match.start()]):
            found.append(match.span())
    return found


# ---- Chinese residents

PROVINCES = (
    {f"{n}" for first, last in ((11, 15), (21, 23), (31, 37), (41, 46), (50, 54), (61, 65)) for n in range(first, last + 1)}
    | {"71", "81", "82", "83"}
)  # fmt: skip
"""GB/T 2260, first two digits."""
RESIDENT = re.compile(
    rf"{NOT_BEFORE}(?P<region>[1-8][0-9]{{5}})(?:(?P<year>(?:18|19|20)[0-9]{{2}})(?P<month>[01][0-9])(?P<day>[0-3][0-9])[0-9]{{3}}"
    rf"(?P<check>[0-9Xx])|(?P<yy>[0-9]{{2}})(?P<mm>[01][0-9])(?P<dd>[0-3][0-9])[0-9]{{3}}){NOT_BEHIND}"
)
WEIGHTS = [2 ** (17 - place) % 11 for place in range(17)]


def residents(text: str) -> list[Span]:
    """GB 11643: region, date of birth, serial number, and from 1999 on a check digit (ISO 7064 mod 11-2)."""
    found = []
    for match in _in_zones(RESIDENT, text, 15):
        date = (match["year"], match["month"], match["day"]) if match["check"] else ("19" + match["yy"], match["mm"], match["dd"])
        if match["region"][:2] not in PROVINCES or not _is_date(*map(int, date)):
            continue
        if match["check"] and resident_check(match[0][:17]) != match["check"].upper():
            continue
        found.append(match.span())
    return disjoint(found)


def resident_check(digits: str) -> str:
    """Of the first 17."""
    return "10X98765432"[sum(w * int(d) for w, d in zip(WEIGHTS, digits, strict=True)) % 11]


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        datetime.date(year, month, day)
    except ValueError:
        return False
    return True
